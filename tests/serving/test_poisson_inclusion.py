"""The server's ca-poisson is the trainer's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esr_trainer.inclusion import log_inclusion_probabilities
from serving.poisson_inclusion import poisson_inclusion


@pytest.mark.parametrize("temperature", [1.0, 0.2, 0.02])
@pytest.mark.parametrize(("num_experts", "k"), [(1, 1), (1, 10), (1, 199), (3, 2), (3, 10), (5, 50), (5, 199)])
def test_probabilities_are_the_trainers(num_experts: int, k: int, temperature: float) -> None:
    logits = np.random.default_rng(k).standard_normal((num_experts, 200)) / temperature
    pi = log_inclusion_probabilities(torch.from_numpy(logits)[None], k)[0].exp().numpy()
    assert poisson_inclusion(logits, k) == pytest.approx(pi, abs=1e-6)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_sharp_races_have_the_trainers_probabilities(data: st.DataObject) -> None:
    num_experts = data.draw(st.integers(1, 3))
    num_items = data.draw(st.integers(2, 12))
    k = data.draw(st.integers(1, num_items))
    values = st.sampled_from([-40.0, -20.0, 0.0, 0.0, 20.0, 40.0]) | st.floats(-40, 40)
    rows = data.draw(
        st.lists(st.lists(values, min_size=num_items, max_size=num_items), min_size=num_experts, max_size=num_experts)
    )
    logits = np.array(rows)
    pi = poisson_inclusion(logits, k)
    assert np.isfinite(pi).all()
    assert pi.min() >= 0
    assert pi.max() <= 1
    assert pi.sum() == pytest.approx(k, abs=1e-6)
    expected = log_inclusion_probabilities(torch.from_numpy(logits)[None], k)[0].exp().numpy()
    assert pi == pytest.approx(expected, abs=1e-6)
