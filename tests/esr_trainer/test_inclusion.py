"""ca-poisson: against Monte Carlo, and what must hold exactly."""

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from esr_trainer.estimators import ESTIMATORS
from esr_trainer.inclusion import log_inclusion_probabilities, log_stopping_times
from esr_trainer.policy import sample_candidates
from esr_trainer.quotas import quotas
from esr_trainer.sharp_races import log_arrival_probability


def monte_carlo(logits: Tensor, num_candidates: int, draws: int, seed: int) -> Tensor:
    """Inclusion frequencies of `draws` Gumbel draws: (1, M, N) -> (N,)."""
    generator, chunk = torch.Generator().manual_seed(seed), 500
    counts = torch.zeros(logits.shape[2], dtype=torch.float64)
    for _ in range(draws // chunk):
        drawn = sample_candidates(logits.expand(chunk, -1, -1), num_candidates, generator)
        counts += torch.bincount(drawn.flatten(), minlength=logits.shape[2])
    return counts / draws


def excess_error(temperature: float, num_experts: int, num_candidates: int, draws: int) -> float:
    """sum_a |pi - pi_MC| / K, less what sampling noise alone gives: E|noise| = sqrt(2 / pi) x its deviation."""
    logits = torch.randn((1, num_experts, 1000), generator=torch.Generator().manual_seed(7)) / temperature
    pi = log_inclusion_probabilities(logits, num_candidates).exp()[0]
    assert float(pi.sum()) == pytest.approx(num_candidates, abs=1e-4)
    frequency = monte_carlo(logits, num_candidates, draws, seed=8)
    noise = (pi * (1 - pi) / draws).clamp(min=0).sqrt().sum() * math.sqrt(2 / math.pi)
    return float(((pi - frequency).abs().sum() - noise) / num_candidates)


CASES = [
    (temperature, num_experts, num_candidates)
    for temperature in (1.0, 0.5, 0.2)
    for num_experts in (1, 3, 5)
    for num_candidates in (5, 10, 20, 50, 100, 200)
    if min(quotas(num_candidates, num_experts)) >= 5
]


@pytest.mark.parametrize(("temperature", "num_experts", "num_candidates"), [c for c in CASES if c[2] in (5, 50, 200)])
def test_error_against_draws(temperature: float, num_experts: int, num_candidates: int) -> None:
    assert excess_error(temperature, num_experts, num_candidates, draws=20_000) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("temperature", "num_experts", "num_candidates"), CASES)
def test_error_against_many_draws(temperature: float, num_experts: int, num_candidates: int) -> None:
    assert excess_error(temperature, num_experts, num_candidates, draws=200_000) < 0.02


def test_exact_inclusion_probability_by_enumeration_is_close() -> None:
    # Six items, three positions: far from the asymptotics, where the closed form is still right to a few per cent.
    logits = torch.randn((1, 1, 6), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sets = torch.tensor(list(permutations(range(6), 3)))
    probability = ESTIMATORS["v"](logits.expand(len(sets), -1, -1), sets[:, :1], sets)[:, 0].exp()
    exact = torch.stack([probability[(sets == item).any(1)].sum() for item in range(6)])
    pi = log_inclusion_probabilities(logits, 3).exp()[0]
    assert float((pi - exact).abs().sum() / 3) < 0.05


@pytest.mark.parametrize("deviation", [300, 1000, 3000])
def test_one_experts_logits_may_have_any_size(deviation: float) -> None:
    logits = torch.randn((40, 1, 50), generator=torch.Generator().manual_seed(2), dtype=torch.float64) * deviation
    logits.requires_grad_()
    for num_candidates in (1, 2, 4, 49):
        log_pi = log_inclusion_probabilities(logits, num_candidates)
        (gradient,) = torch.autograd.grad(log_pi.sum(), logits)
        expected = torch.full((40,), num_candidates, dtype=torch.float64)
        torch.testing.assert_close(log_pi.exp().sum(dim=1), expected, rtol=0, atol=1e-7)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("num_experts", [1, 2, 4])
@pytest.mark.parametrize("num_candidates", [1, 4, 7])
def test_gradient_is_the_implicit_functions(num_experts: int, num_candidates: int) -> None:
    logits = torch.randn((2, num_experts, 8), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda f: log_inclusion_probabilities(f, num_candidates), (logits,), atol=1e-6)


def test_score_function_of_one_expert() -> None:
    # (s_a / pi_a) (e_a - q) with s = z e^-z, q = s / sum s (DESIGN §4).
    logits = torch.randn((1, 1, 7), generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    log_pi = log_inclusion_probabilities(logits, 3)
    pi = log_pi.exp().detach()[0]
    z = -torch.log1p(-pi)
    s = z * (-z).exp()
    for item in range(7):
        (gradient,) = torch.autograd.grad(log_pi[0, item], logits, retain_graph=True)
        expected = s[item] / pi[item] * (torch.eye(7, dtype=torch.float64)[item] - s / s.sum())
        torch.testing.assert_close(gradient[0, 0], expected, rtol=0, atol=1e-10)


def test_tends_to_top1_when_every_inclusion_is_unlikely() -> None:
    logits = torch.randn((1, 1, 100_000), generator=torch.Generator().manual_seed(3)) * 0.1
    item = torch.tensor([[17]])
    found, expected = (ESTIMATORS[name](logits.double(), item, item) for name in ("ca-poisson", "top1"))
    assert float(found) == pytest.approx(float(expected), abs=1e-4)


def test_two_groups_by_hand() -> None:
    # K = 1 of 2 equal items: 2 (1 - e^-z) = 1, so pi = 1/2 exactly. K = 2 of 4 where two are 60 ahead:
    # 2 e^-z = 2 (1 - e^-(z e^-60)), so z + log z = 60, and the two behind are in with probability e^-z.
    assert log_inclusion_probabilities(torch.zeros(1, 1, 2), 1).exp().tolist() == [[pytest.approx(0.5)] * 2]
    log_pi = log_inclusion_probabilities(torch.tensor([[[60.0, 0, 60, 0]]]), 2)[0]
    z = 60.0
    for _ in range(50):
        z = 60 - math.log(z)
    assert log_pi.tolist() == pytest.approx([-math.exp(-z), -z, -math.exp(-z), -z], rel=1e-6)


def test_log_arrival_probability_at_both_ends() -> None:
    log_z = torch.tensor([-300.0, -40.0, -14.0, -1.0, 0.0, 2.0, 5.0, 90.0], dtype=torch.float64).requires_grad_()
    expected = [-300, -40, math.log(-math.expm1(-math.exp(-14))), math.log(-math.expm1(-math.exp(-1)))]
    expected += [math.log(-math.expm1(-1)), math.log(-math.expm1(-math.exp(2))), 0, 0]
    found = log_arrival_probability(log_z)
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    assert torch.autograd.gradcheck(log_arrival_probability, (log_z[1:7].detach().requires_grad_(),), atol=1e-6)
    (slope,) = torch.autograd.grad(found.sum(), log_z)
    assert slope[0] == 1
    assert slope[-1] == 0


@pytest.mark.parametrize("num_experts", [1, 3])
def test_float32_tells_the_stopping_times_of_a_large_catalogue(num_experts: int) -> None:
    # nearly equal logits: rounding errors of 1 - e^-z would all have one sign
    logits = torch.randn((2, num_experts, 50_000), generator=torch.Generator().manual_seed(4)) * 1e-5
    found, exact = (log_stopping_times(values, 30) for values in (logits, logits.double()))
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_experts", [1, 3])
def test_a_sharp_context_does_not_touch_its_neighbour(num_experts: int) -> None:
    easy = torch.randn((1, num_experts, 40), generator=torch.Generator().manual_seed(5))
    sharp = torch.where(torch.arange(40) < 9, 60.0, -60.0).expand_as(easy)

    def gradient(logits: Tensor) -> Tensor:
        logits.requires_grad_()
        return torch.autograd.grad(log_stopping_times(logits, 9).sum(), logits)[0]

    together = gradient(torch.cat([easy, sharp]))
    torch.testing.assert_close(together[:1], gradient(easy), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(together[1:], gradient(sharp.double()).float(), rtol=1e-4, atol=1e-6)
