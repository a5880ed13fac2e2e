"""The chance of a slot behind both stages, against every candidate set and every order of it."""

import itertools

import numpy as np
import pytest
import torch

from esr_trainer.drawn_inclusion import log_drawn_inclusion
from esr_trainer.inclusion import log_inclusion_probabilities
from esr_trainer.late_stage_rankers import LATE_STAGE_RANKERS
from esr_trainer.policy import sample_candidates
from offline_eval.logs import picked_probabilities
from offline_eval.logs.picked_probabilities import picks


def log_inclusion_of(num_items: int, num_candidates: int, seed: int, spread: float = 2.0) -> np.ndarray:
    """log pi of random logits, (1, N), which sums to K."""
    logits = spread * torch.randn((1, 1, num_items), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return log_inclusion_probabilities(logits, num_candidates).numpy()


def utilities_of(num_items: int, seed: int, spread: float = 3.0) -> np.ndarray:
    return spread * np.random.default_rng(seed).normal(size=(1, num_items))


def enumerated(pi: np.ndarray, utilities: np.ndarray, num_candidates: int, num_slots: int) -> np.ndarray:
    """pi(a) P(a in slot l | a in A), A conditional Poisson, the slate Plackett-Luce: (N,), (N,) -> (N, L)."""
    together, drawn = np.zeros((len(pi), num_slots)), np.zeros(len(pi))
    for candidates in itertools.combinations(range(len(pi)), num_candidates):
        chance = np.prod([pi[item] if item in candidates else 1 - pi[item] for item in range(len(pi))])
        drawn[list(candidates)] += chance
        for slate in itertools.permutations(candidates, num_slots):
            left, order = set(candidates), 1.0
            for item in slate:
                order *= np.exp(utilities[item]) / sum(np.exp(utilities[other]) for other in left)
                left -= {item}
            for slot, item in enumerate(slate):
                together[item, slot] += chance * order
    return pi[:, None] * together / drawn[:, None]


@pytest.mark.parametrize(("num_items", "num_candidates", "num_slots"), [(7, 1, 1), (7, 3, 3), (8, 5, 2), (6, 6, 2)])
def test_the_chance_of_a_slot_is_the_sum_over_sets_and_orders(
    num_items: int, num_candidates: int, num_slots: int
) -> None:
    log_pi, utilities = log_inclusion_of(num_items, num_candidates, 0), utilities_of(num_items, 1)
    (own,) = picks(log_pi, utilities + 50.0, num_candidates, num_slots)
    exact = enumerated(np.exp(log_pi[0]), utilities[0], num_candidates, num_slots)
    assert np.exp(own.log_chance(np.arange(num_items))) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_summed_and_multiplied_factors_agree(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """800 items of pi about 0.004."""
    log_pi, utilities = log_inclusion_of(800, 3, 2, spread), utilities_of(800, 3)
    assert (np.exp(log_pi) < picked_probabilities.HEAD).any()
    found = picks(log_pi, utilities, 3, 3)[0].log_chance(np.arange(800))
    monkeypatch.setattr(picked_probabilities, "HEAD", -1.0)
    exact = picks(log_pi, utilities, 3, 3)[0].log_chance(np.arange(800))
    assert found == pytest.approx(exact, abs=2e-3)
    assert np.exp(found).sum(axis=0) == pytest.approx(np.ones(3), rel=2e-3)


def test_a_uniform_lsr_shows_every_candidate_alike() -> None:
    log_pi = log_inclusion_of(50, 10, 4)
    (own,) = picks(log_pi, np.zeros((1, 50)), 10, 4)
    assert own.log_chance(np.arange(50)) == pytest.approx(np.repeat(log_pi.T - np.log(10), 4, axis=1), abs=1e-5)


def test_long_slates_are_summed_more_finely() -> None:
    log_pi = log_inclusion_of(40, 20, 4)
    (own,) = picks(log_pi, np.zeros((1, 40)), 20, 20)
    assert own.log_chance(np.arange(40)) == pytest.approx(np.repeat(log_pi.T - np.log(20), 20, axis=1), abs=1e-3)


def test_sure_items_are_not_divided_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """All ten are shown; warnings are errors. Whether they are asked for at once does not matter."""
    (own,) = picks(np.zeros((1, 10)), utilities_of(10, 11), 10, 10)
    found = own.log_chance(np.arange(10))
    assert np.exp(found).sum(axis=1) == pytest.approx(np.ones(10), abs=1e-4)
    monkeypatch.setattr(picked_probabilities, "CELLS", 1)
    assert own.log_chance(np.arange(10)) == pytest.approx(found)
    assert own.log_chance(np.array([], dtype=int)).shape == (0, 10)


def test_contexts_do_not_mix() -> None:
    log_pi = np.concatenate([log_inclusion_of(30, 5, seed, spread) for seed, spread in ((5, 0.1), (6, 4.0))])
    utilities = np.concatenate([utilities_of(30, seed) for seed in (7, 8)])
    both = picks(log_pi, utilities, 5, 2)
    for row, own in enumerate(both):
        (alone,) = picks(log_pi[[row]], utilities[[row]], 5, 2)
        assert own.log_chance(np.arange(30)) == pytest.approx(alone.log_chance(np.arange(30)), abs=1e-6)


@pytest.mark.parametrize("num_experts", [1, 2])
def test_it_is_what_draws_do(num_experts: int) -> None:
    """100,000 rounds of a Gumbel top-k and a Plackett-Luce LSR, K = 5 of 20."""
    generator = torch.Generator().manual_seed(9)
    logits = 1.5 * torch.randn((1, num_experts, 20), generator=generator, dtype=torch.float64)
    utilities = torch.from_numpy(utilities_of(20, 10))
    drawn = sample_candidates(logits.expand(100_000, -1, -1), 5, generator)
    positions = LATE_STAGE_RANKERS["noisy"].rank(utilities[0, drawn], 2, generator)
    slate = drawn.gather(1, positions).numpy()
    observed = np.stack([np.bincount(slate[:, slot], minlength=20) for slot in range(2)], axis=1) / len(slate)
    (own,) = picks(log_drawn_inclusion(logits, 5).numpy(), utilities.numpy(), 5, 2)
    expected = np.exp(own.log_chance(np.arange(20)))
    assert np.abs(expected - observed).sum(axis=0).max() < 0.03
    alone = np.exp(log_drawn_inclusion(logits, 5).numpy())[0, :, None] / 5  # as if the LSR were uniform
    assert np.abs(alone - observed).sum(axis=0).min() > 0.5
