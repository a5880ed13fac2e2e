"""The server's draw is the trainer's."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from esr_trainer.drawn_inclusion import log_drawn_inclusion
from esr_trainer.estimators import ESTIMATORS
from offline_eval.reproduce.inclusion_error import drawn_inclusion
from serving.sampling import draw, greedy, inclusion_probabilities, log_probability_of


def logits_of(seed: int, num_experts: int, num_items: int, temperature: float) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_experts, num_items)) / temperature


@pytest.mark.parametrize("temperature", [1.0, 0.2, 0.02])
@pytest.mark.parametrize(("num_experts", "k"), [(1, 1), (1, 2), (1, 8), (1, 199), (3, 2), (3, 10), (5, 50), (5, 40)])
def test_probabilities_are_the_trainers(num_experts: int, k: int, temperature: float) -> None:
    logits = logits_of(k, num_experts, 200, temperature)
    drawn = draw(logits, k, seed=3)
    tensor = torch.from_numpy(logits)[None]
    pi = log_drawn_inclusion(tensor, k)[0].exp().numpy()
    assert inclusion_probabilities(logits, k) == pytest.approx(pi, abs=1e-6)
    assert drawn.inclusion_propensities == pytest.approx(pi[drawn.items], abs=1e-6)
    items = torch.from_numpy(drawn.items)[None]
    expected = float(ESTIMATORS["v"](tensor, items[:, :1], items)[0, 0])
    assert drawn.log_probability == pytest.approx(expected, abs=1e-6, rel=1e-9)


def test_ordered_candidates_come_as_often_as_their_probability_says() -> None:
    logits = logits_of(0, 2, 5, 1.0)
    draws = 8_000  # enough to tell noise that is a tenth too small
    counts: dict[tuple[int, ...], int] = dict.fromkeys(itertools.permutations(range(5), 3), 0)
    for seed in range(draws):
        counts[tuple(draw(logits, 3, seed).items.tolist())] += 1
    expected = [math.exp(log_probability_of(logits, np.array(items))) for items in counts]
    assert sum(expected) == pytest.approx(1, abs=1e-12)
    assert chisquare(list(counts.values()), np.array(expected) * draws).pvalue > 0.01


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


def test_a_logged_propensity_is_how_often_it_is_drawn() -> None:
    logits, draws = np.array([[3.0, 0.0, 0.0, 0.0]]), 4000
    drawn = [draw(logits, 1, seed) for seed in range(draws)]
    logged = {int(one.items[0]): one.inclusion_propensities[0] for one in drawn}
    assert logged[0] == pytest.approx(math.exp(3) / (math.exp(3) + 3), rel=1e-12)
    counts = [sum(one.items[0] == item for one in drawn) for item in logged]
    assert chisquare(counts, np.array(list(logged.values())) * draws).pvalue > 0.01


PEAKED = np.array([4.0, 2.0, 1.0] + [0.0] * 97)
"""What a trained policy is like: a few items stand out."""


def relative_error(logits: np.ndarray, num_candidates: int, draws: int) -> float:
    """sum_a |pi - pi of the draws| / K: how far a logged propensity is off on average."""
    expected = drawn_inclusion(torch.from_numpy(logits)[None], num_candidates, draws).numpy()
    return float(abs(inclusion_probabilities(logits, num_candidates) - expected).sum() / num_candidates)


@pytest.mark.parametrize("num_experts", [1, 2])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_propensities_of_few_candidates_are_those_of_many_draws(k: int, num_experts: int) -> None:
    for logits in (np.tile(PEAKED, (num_experts, 1)), logits_of(7, num_experts, 100, 0.2)):
        assert relative_error(logits, k, 20_000) < 0.005


@pytest.mark.slow
@pytest.mark.parametrize(("num_items", "temperature"), [(1000, 0.2), (150, 0.5), (150, 0.2)])
@pytest.mark.parametrize("num_experts", [1, 5])
@pytest.mark.parametrize("quota", [3, 8, 9, 12])
def test_propensities_are_those_of_many_draws(quota: int, num_experts: int, num_items: int, temperature: float) -> None:
    error = relative_error(logits_of(7, num_experts, num_items, temperature), quota * num_experts, 20_000)
    print(f"quota {quota}, M = {num_experts}, N = {num_items}, temperature {temperature}: {100 * error:.2f} %")
    assert error < (0.006 if quota <= 8 else 0.015)
