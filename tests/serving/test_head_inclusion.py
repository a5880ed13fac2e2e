"""The server's draw-by-draw inclusion probabilities are the trainer's ca-heads."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esr_trainer.drawn_inclusion import log_drawn_inclusion
from esr_trainer.estimators import ESTIMATORS
from serving.head_inclusion import head_inclusion
from serving.sampling import inclusion_probabilities


@pytest.mark.parametrize("temperature", [1.0, 0.2, 0.02])
@pytest.mark.parametrize(("num_experts", "k"), [(1, 1), (1, 2), (1, 4), (2, 5), (3, 12), (5, 20)])
def test_probabilities_are_those_of_ca_heads(num_experts: int, k: int, temperature: float) -> None:
    logits = np.random.default_rng(k).standard_normal((num_experts, 200)) / temperature
    everything = torch.arange(200)[None]
    expected = ESTIMATORS["ca-heads"](torch.from_numpy(logits)[None], everything, everything[:, :k])[0].exp()
    assert head_inclusion(logits, k, 6) == pytest.approx(expected.numpy(), abs=1e-6)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_sharp_draws_have_the_trainers_probabilities(data: st.DataObject) -> None:
    num_experts = data.draw(st.integers(1, 3))
    num_items = data.draw(st.integers(1, 10))
    k = data.draw(st.integers(1, num_items))
    values = st.sampled_from([-400.0, -20.0, 0.0, 0.0, 20.0, 400.0]) | st.floats(-40, 40)
    row = st.lists(values, min_size=num_items, max_size=num_items)
    logits = np.array(data.draw(st.lists(row, min_size=num_experts, max_size=num_experts)))
    if np.ptp(logits) > 100:  # of several such experts ca-poisson itself is not told
        logits = logits[:1]
    pi = inclusion_probabilities(logits, k)
    assert np.isfinite(pi).all()
    assert pi.min() >= 0
    assert pi.max() <= 1
    assert pi.sum() == pytest.approx(k, abs=1e-5)
    expected = log_drawn_inclusion(torch.from_numpy(logits)[None], k)[0].exp().numpy()
    assert pi == pytest.approx(expected, abs=1e-6)


def test_draws_that_cannot_be_followed_are_said() -> None:
    logits = np.zeros((1, 20))
    logits[0, 0] = 400.0
    assert head_inclusion(logits, 3, 6) is None
