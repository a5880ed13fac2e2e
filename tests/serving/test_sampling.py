"""The server's draw is the trainer's."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from esr_trainer.estimators import ESTIMATORS
from esr_trainer.inclusion import log_inclusion_probabilities
from serving.sampling import draw, greedy, inclusion_probabilities, log_probability_of


def logits_of(seed: int, num_experts: int, num_items: int, temperature: float) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_experts, num_items)) / temperature


@pytest.mark.parametrize("temperature", [1.0, 0.2, 0.02])
@pytest.mark.parametrize(("num_experts", "k"), [(1, 1), (1, 10), (1, 199), (3, 2), (3, 10), (5, 50), (5, 199)])
def test_probabilities_are_the_trainers(num_experts: int, k: int, temperature: float) -> None:
    logits = logits_of(k, num_experts, 200, temperature)
    drawn = draw(logits, k, seed=3)
    tensor = torch.from_numpy(logits)[None]
    pi = log_inclusion_probabilities(tensor, k)[0].exp().numpy()
    assert inclusion_probabilities(logits, k) == pytest.approx(pi, abs=1e-6)
    assert drawn.inclusion_propensities == pytest.approx(pi[drawn.items], abs=1e-6)
    items = torch.from_numpy(drawn.items)[None]
    expected = float(ESTIMATORS["v"](tensor, items[:, :1], items)[0, 0])
    assert drawn.log_probability == pytest.approx(expected, abs=1e-6, rel=1e-9)


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
    pi = inclusion_probabilities(logits, k)
    assert np.isfinite(pi).all()
    assert pi.min() >= 0
    assert pi.max() <= 1
    assert pi.sum() == pytest.approx(k, abs=1e-6)
    expected = log_inclusion_probabilities(torch.from_numpy(logits)[None], k)[0].exp().numpy()
    assert pi == pytest.approx(expected, abs=1e-6)


def test_ordered_candidates_come_as_often_as_their_probability_says() -> None:
    logits = logits_of(0, 2, 5, 1.0)
    draws = 20_000
    counts: dict[tuple[int, ...], int] = dict.fromkeys(itertools.permutations(range(5), 3), 0)
    for seed in range(draws):
        counts[tuple(draw(logits, 3, seed).items.tolist())] += 1
    expected = [math.exp(log_probability_of(logits, np.array(items))) for items in counts]
    assert sum(expected) == pytest.approx(1, abs=1e-12)
    assert chisquare(list(counts.values()), np.array(expected) * draws).pvalue > 1e-4


def test_a_seed_decides_the_draw() -> None:
    logits = logits_of(1, 2, 50, 1.0)
    assert draw(logits, 10, 7).items.tolist() == draw(logits, 10, 7).items.tolist()
    assert draw(logits, 10, 7).items.tolist() != draw(logits, 10, 8).items.tolist()


def test_without_noise_it_is_greedy() -> None:
    from esr_trainer.policy import greedy_candidates

    logits = logits_of(2, 3, 40, 1.0)
    assert greedy(logits, 11).tolist() == greedy_candidates(torch.from_numpy(logits)[None], 11)[0].tolist()


def test_every_item_is_sure_when_all_are_taken() -> None:
    drawn = draw(logits_of(3, 2, 6, 1.0), 6, 1)
    assert sorted(drawn.items.tolist()) == list(range(6))
    assert drawn.inclusion_propensities.tolist() == [1.0] * 6
    assert -20 < drawn.log_probability < 0
