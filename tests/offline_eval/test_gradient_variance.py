"""Moments of gradients by enumeration, against derivatives, draws and the theorem."""

from itertools import permutations

import pytest
import torch

from esr_trainer.estimators import ESTIMATORS
from esr_trainer.policy import sample_candidates
from offline_eval.reproduce.gradient_variance import EXACT, REST, gradient_errors, gradient_grid, moments_of

LOGITS = torch.tensor([0.5, -1.0, 1.5, 0.0, 0.2], dtype=torch.float64)
REWARDS = torch.tensor([1.0, 3.0, 2.0, 1.5, 2.5], dtype=torch.float64)


def expected_reward(logits: torch.Tensor, num_candidates: int) -> torch.Tensor:
    """Under the optimal LSR."""
    sets = torch.tensor(list(permutations(range(len(logits)), num_candidates)))
    chance = ESTIMATORS["v"](logits.expand(len(sets), 1, -1), sets[:, :1], sets)[:, 0].exp()
    return chance @ REWARDS[sets].amax(dim=1)


@pytest.mark.parametrize("num_candidates", [1, 2, 4])
def test_the_mean_of_v_is_the_derivative_of_the_expected_reward(num_candidates: int) -> None:
    logits = LOGITS.clone().requires_grad_()
    (exact,) = torch.autograd.grad(expected_reward(logits, num_candidates), logits)
    torch.testing.assert_close(moments_of(LOGITS, REWARDS, num_candidates, "optimal")["v"].mean, exact)


@pytest.mark.parametrize("lsr", ["optimal", "noisy"])
def test_theorem_3_1_holds_to_rounding(lsr: str) -> None:
    found = moments_of(LOGITS, REWARDS, 3, lsr)
    torch.testing.assert_close(found[EXACT].mean + found[REST].mean, found["v"].mean, rtol=0, atol=1e-12)


def test_with_one_candidate_all_estimators_are_one() -> None:
    found = moments_of(LOGITS, REWARDS, 1, "optimal")
    assert found[REST].variance.abs() < 1e-12
    for name in ("v-swr", "ca", "ca-swr", "ca-heads", EXACT):
        torch.testing.assert_close(found[name].mean, found["v"].mean)
        torch.testing.assert_close(found[name].variance, found["v"].variance)


@pytest.mark.parametrize("name", ["v", "ca-poisson"])
def test_moments_are_what_draws_say(name: str) -> None:
    count = 40_000
    logits = LOGITS.repeat(count, 1, 1)
    candidates = sample_candidates(logits, 3, torch.Generator().manual_seed(0))
    rewards = REWARDS[candidates]
    slate = candidates.gather(1, rewards.argmax(dim=1, keepdim=True))
    own = logits.requires_grad_()
    (gradient,) = torch.autograd.grad(ESTIMATORS[name](own, slate, candidates).sum(), own)
    samples = rewards.amax(dim=1)[:, None] * gradient[:, 0]
    found = moments_of(LOGITS, REWARDS, 3, "optimal")[name]
    torch.testing.assert_close(samples.mean(dim=0), found.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(samples.var(dim=0).sum(), found.variance, rtol=0.03, atol=0)


def test_variance_of_v_grows_with_k_and_exact_credit_takes_most_of_it_away() -> None:
    rows = {(row.lsr, row.estimator, row.num_candidates): row for row in gradient_errors(4)}
    of_v, exact = ([rows["optimal", name, k].variance for k in (1, 2, 3, 4)] for name in ("v", EXACT))
    assert of_v == sorted(of_v)
    assert all(credited < whole / 2 for credited, whole in zip(exact[2:], of_v[2:], strict=True))
    assert rows["optimal", "v", 4].bias == pytest.approx(0)
    assert rows["optimal", "v-swr", 4].bias > 0.1
    grid = gradient_grid(list(rows.values()))
    assert grid.head == ["LSR", "", "K=1", "K=2", "K=3", "K=4"]
    assert len(grid.rows) == 2 * 8
