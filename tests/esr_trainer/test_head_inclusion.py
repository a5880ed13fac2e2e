"""ca-heads: against enumeration and Monte Carlo, and what must hold exactly."""

from itertools import permutations

import pytest
import torch
from torch import Tensor

from esr_trainer.estimators import ESTIMATORS
from offline_eval.reproduce.inclusion_error import drawn_inclusion


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def log_pi(logits: Tensor, num_candidates: int, name: str = "ca-heads") -> Tensor:
    """Of every item: (B, M, N) -> (B, N)."""
    everything = torch.arange(logits.shape[2]).expand(len(logits), -1)
    return ESTIMATORS[name](logits, everything, everything[:, :num_candidates])


def error(name: str, logits: Tensor, num_candidates: int, expected: Tensor) -> float:
    """sum_a |pi - expected| / K."""
    return float((log_pi(logits, num_candidates, name).exp()[0] - expected).abs().sum() / num_candidates)


SMALL_QUOTAS = [(num_experts, quota * num_experts) for num_experts in (1, 3, 5) for quota in (2, 3, 4)]


def errors(num_experts: int, num_candidates: int, draws: int) -> tuple[float, float]:
    logits = normal(1, num_experts, 1000, seed=7, scale=5.0)  # temperature 0.2
    expected = drawn_inclusion(logits, num_candidates, draws)
    heads, poisson = (error(name, logits, num_candidates, expected) for name in ("ca-heads", "ca-poisson"))
    return heads, poisson


@pytest.mark.parametrize(("num_experts", "num_candidates"), [(1, 2), (1, 4), (3, 9), (5, 10)])
def test_nearer_to_draws_than_ca_poisson_where_quotas_are_small(num_experts: int, num_candidates: int) -> None:
    heads, poisson = errors(num_experts, num_candidates, draws=20_000)
    assert heads < 0.006
    assert heads < poisson / 2


@pytest.mark.slow
@pytest.mark.parametrize(("num_experts", "num_candidates"), SMALL_QUOTAS)
def test_nearer_to_many_draws_than_ca_poisson(num_experts: int, num_candidates: int) -> None:
    heads, poisson = errors(num_experts, num_candidates, draws=200_000)
    assert heads < 0.004
    assert heads < poisson / 4


@pytest.mark.parametrize(("num_experts", "num_candidates"), [(1, 1), (1, 4), (2, 3), (2, 5)])
def test_exact_by_enumeration_when_every_item_is_a_head(num_experts: int, num_candidates: int) -> None:
    logits = normal(1, num_experts, 6, seed=1, scale=2.0)
    sets = torch.tensor(list(permutations(range(6), num_candidates)))
    probability = ESTIMATORS["v"](logits.expand(len(sets), -1, -1), sets[:, :1], sets)[:, 0].exp()
    exact = torch.stack([probability[(sets == item).any(1)].sum() for item in range(6)])
    torch.testing.assert_close(log_pi(logits, num_candidates)[0].exp(), exact, rtol=0, atol=1e-12)


def test_one_draw_of_one_expert_is_a_softmax() -> None:
    logits = normal(3, 1, 1000, seed=2, scale=5.0)
    torch.testing.assert_close(log_pi(logits, 1), logits[:, 0].log_softmax(1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("num_experts", "num_candidates"), [(1, 4), (2, 5), (5, 20)])
def test_inclusion_probabilities_sum_to_k(num_experts: int, num_candidates: int, dtype: torch.dtype) -> None:
    logits = normal(8, num_experts, 300, seed=3, scale=5.0)
    logits[1:3] *= 5  # too wide for float32
    logits[4, :, 0] += 60  # one item leads
    total = log_pi(logits.to(dtype), num_candidates).double().exp().sum(dim=1)
    torch.testing.assert_close(total, torch.full_like(total, num_candidates), rtol=1e-6, atol=0)


def test_the_score_over_all_candidates_has_mean_zero() -> None:
    logits = normal(2, 3, 40, seed=3, scale=3.0).requires_grad_()
    (gradient,) = torch.autograd.grad(log_pi(logits, 7).exp().sum(), logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


def test_float32_is_close_to_float64() -> None:
    logits = normal(8, 3, 1000, seed=4, scale=5.0).float()
    torch.testing.assert_close(log_pi(logits, 9).double(), log_pi(logits.double(), 9), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("num_experts", "num_items", "num_candidates"), [(1, 9, 3), (2, 10, 5), (3, 6, 4), (2, 14, 7)])
def test_gradient_is_the_functions_own(num_experts: int, num_items: int, num_candidates: int) -> None:
    logits = normal(2, num_experts, num_items, seed=5, scale=2.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: log_pi(f, num_candidates), (logits,), atol=1e-6)


@pytest.mark.parametrize(
    ("num_experts", "num_items", "num_candidates"),
    [(1, 1000, 5), (2, 1000, 9), (1, 7, 4), (1, 7, 7), (2, 5, 5)],
)
def test_is_ca_poisson_where_the_draws_cannot_be_followed(
    num_experts: int, num_items: int, num_candidates: int
) -> None:
    logits = normal(2, num_experts, num_items, seed=6)
    found, expected = (log_pi(logits, num_candidates, name) for name in ("ca-heads", "ca-poisson"))
    assert torch.equal(found, expected)


def test_only_contexts_that_cannot_be_followed_are_ca_poissons() -> None:
    logits = normal(3, 1, 50, seed=9, scale=5.0)
    logits[1] *= 100  # wider than float64 can hold
    found, expected = (log_pi(logits, 2, name) for name in ("ca-heads", "ca-poisson"))
    assert torch.equal(found[1], expected[1])
    assert not torch.isclose(found[0], expected[0], rtol=0, atol=1e-3).all()
    assert found.exp().sum(dim=1).tolist() == [pytest.approx(2, abs=1e-6)] * 3


def test_sums_to_k_when_the_dust_runs_out() -> None:
    logits = (24 * normal(400, 1, 24, seed=11).clamp(-1, 1)).expand(-1, 5, -1)  # all want the same, ties among them
    total = log_pi(logits, 8).exp().sum(dim=1)
    torch.testing.assert_close(total, torch.full_like(total, 8), rtol=0, atol=1e-5)


@pytest.mark.parametrize("lead", [40.0, 100.0, 160.0])
@pytest.mark.parametrize("num_leaders", [1, 3, 9])
def test_finite_and_summing_to_k_when_few_items_dominate(lead: float, num_leaders: int) -> None:
    logits = normal(2, 3, 60, seed=10).float()
    logits[:, :, :num_leaders] += lead  # all experts want the same items
    logits.requires_grad_()
    found = log_pi(logits, 9)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient.isfinite().all()
    assert found.exp().sum(dim=1).tolist() == [pytest.approx(9, abs=1e-4)] * 2
