from collections.abc import Callable
from itertools import permutations

import pytest
import torch

from esr_trainer.__main__ import command_line
from esr_trainer.config import GROUP
from esr_trainer.estimators import ESTIMATORS
from esr_trainer.inclusion import log_inclusion_probabilities
from esr_trainer.late_stage_rankers import LATE_STAGE_RANKERS
from esr_trainer.variance_reduction import MEMORY, ContextBaseline, control_variate, group_normalised

SYNTHETIC = ["--environment", "synthetic", "--candidates", "10", "--experts", "1"]


@pytest.mark.parametrize("lsr", ["noisy", "uniform"])
@pytest.mark.parametrize("name", ["top1", "ca", "ca-poisson", "ca-heads"])
def test_the_control_variates_gradient_has_mean_zero(name: str, lsr: str) -> None:
    """Every slate of two slots that the LSR can draw from given candidates, weighted by its probability."""
    generator = torch.Generator().manual_seed(0)
    candidates = torch.tensor([[3, 0, 5, 1]])
    slates = torch.tensor(list(permutations(range(4), 2)))
    logits = torch.randn((1, 1, 6), generator=generator, dtype=torch.float64).expand(len(slates), -1, -1).clone()
    logits.requires_grad_()
    scores = torch.randn((1, 4), generator=generator, dtype=torch.float64).expand(len(slates), -1)
    propensity = LATE_STAGE_RANKERS[lsr].propensities(scores, slates)
    probability = propensity.gather(2, slates[:, :, None])[..., 0].prod(dim=1)
    assert float(probability.sum()) == pytest.approx(1)
    items = candidates.expand(len(slates), -1)
    estimator = ESTIMATORS[name]
    of_slate = estimator(logits, items.gather(1, slates), items)
    term = control_variate(torch.tensor([[2.0, 0.7]]), of_slate, estimator(logits, items, items), propensity)
    (gradient,) = torch.autograd.grad((probability[:, None] * term).sum(), logits)
    torch.testing.assert_close(gradient.sum(dim=0), torch.zeros(1, 6, dtype=torch.float64), rtol=0, atol=1e-12)
    assert float(gradient.abs().max()) > 1e-3, "each slate alone has a gradient"


@pytest.mark.parametrize("lsr", ["optimal", "anti"])
def test_a_fixed_order_has_sure_propensities(lsr: str) -> None:
    ranker = LATE_STAGE_RANKERS[lsr]
    scores = torch.tensor([[0.1, 0.9, 0.5]])
    positions = ranker.rank(scores, 2, torch.Generator())
    assert ranker.propensities(scores, positions).argmax(dim=2).tolist() == positions.tolist()


@pytest.mark.parametrize("num_experts", [1, 2])
def test_the_closed_forms_score_over_all_candidates_has_mean_zero(num_experts: int) -> None:
    """E[sum over candidates of grad log pi] = sum_a pi(a) grad log pi(a) = grad sum_a pi(a) = 0, as pi sums to K."""
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn((1, num_experts, 7), generator=generator, dtype=torch.float64)).requires_grad_()
    items, candidates = torch.arange(7)[None], torch.arange(4)[None]
    inclusion = log_inclusion_probabilities(logits, 4).exp().detach()
    scores = {
        name: torch.autograd.grad((inclusion * ESTIMATORS[name](logits, items, candidates)).sum(), logits)[0]
        for name in ("ca-poisson", "top1")
    }
    torch.testing.assert_close(scores["ca-poisson"], torch.zeros_like(logits), rtol=0, atol=1e-7)
    assert float(scores["top1"].abs().max()) > 0.04, "top1's has not: the same term would push"


def test_under_the_uniform_ranker_the_closed_form_gets_a_baseline() -> None:
    """With propensities less 1 / K, all 0, what is left is b log pi(a)."""
    shown, candidates = torch.tensor([[-1.0], [-2.0]]), torch.tensor([[-1.0, -3.0], [-4.0, -2.0]])
    found = control_variate(torch.tensor([[5.0], [7.0]]), shown, candidates, torch.full((2, 1, 2), 0.5) - 1 / 2)
    assert found[:, 0].tolist() == [-5, -14]


def test_group_normalisation_by_hand() -> None:
    first = torch.tensor([[float(value)] for value in (1, 3, 1, 3, 1, 3, 1, 3)])
    found = group_normalised(torch.cat([first, torch.full((GROUP, 1), 5.0)]))
    assert found[:, 0].tolist() == [-1, 1] * 4 + [0] * GROUP


def test_the_baseline_is_read_before_it_is_updated() -> None:
    baseline = ContextBaseline.new(3, 1)
    contexts, reward = torch.tensor([1, 2, 1]), torch.tensor([[4.0], [10.0], [6.0]])
    assert baseline.read_and_update(contexts, reward)[:, 0].tolist() == [0, 0, 0]
    assert baseline.mean[:, 0].tolist() == [0, 5, 10]
    assert baseline.read_and_update(torch.tensor([1]), torch.tensor([[8.0]]))[:, 0].tolist() == [5]
    assert baseline.mean[1, 0].item() == pytest.approx(6)  # (4 + 6 + 8) / 3
    for _ in range(10 * MEMORY):
        baseline.read_and_update(torch.tensor([1]), torch.tensor([[1.0]]))
    assert baseline.mean[1, 0].item() == pytest.approx(1, abs=1e-3), "older rewards are forgotten"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--variance-reduction", "baseline"], "variance_reduction (baseline) is for v and v-swr"),
        (["--variance-reduction", "control-variate"], "vanishes for lsr optimal"),
        (["--variance-reduction", "control-variate", "--lsr", "noisy", "--estimator", "v"], "does nothing for v"),
        (["--variance-reduction", "grpo", "--batch", "12"], "batch (12) must be a multiple"),
    ],
)
def test_wrong_uses_are_refused_in_one_line(options: list[str], says: str, refused: Callable[[int], str]) -> None:
    assert says in refused(command_line([*SYNTHETIC, *options]))
