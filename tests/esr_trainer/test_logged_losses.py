"""Losses from logs: expected gradients by enumeration, in float64 on few items.

A log that holds every item as often as its propensity says is its own expectation: the batch's mean is the exact mean.
"""

import math
from collections import Counter
from itertools import combinations_with_replacement, product

import pytest
import torch
from torch import Tensor

from esr_trainer.config import OFF_POLICY
from esr_trainer.estimators import ESTIMATORS
from esr_trainer.inclusion import log_inclusion_probabilities
from esr_trainer.logged_losses import (
    LOGGED_LOSSES,
    CurrentPolicy,
    LoggedBatch,
    Negatives,
    SecondStage,
    credits,
    importance_weights,
)

LOGGED = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3])
"""Items as often as beta = (3/8, 2/8, 1/8, 2/8) says."""
BETA = torch.tensor([3.0, 2.0, 1.0, 2.0], dtype=torch.float64) / 8
REWARD = torch.tensor([0.5, -1.0, 2.0, 0.3], dtype=torch.float64)
"""r(a); a policy near uniform keeps every weight inside its bounds."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole_log() -> LoggedBatch:
    return LoggedBatch(torch.zeros(8, dtype=torch.long), LOGGED, REWARD[LOGGED], BETA[LOGGED], BETA[LOGGED])


def policy_of(
    logits: Tensor, num_candidates: int = 1, stage: SecondStage | None = None, negatives: Negatives | None = None
) -> CurrentPolicy:
    """One context's logits, (M, N), for every row of the log."""
    return CurrentPolicy(logits.expand(len(LOGGED), -1, -1), num_candidates, stage, negatives)


def stage_of(set_size: int = 3, alpha: float = 0.5, num_sets: int = 4, seed: int = 0) -> SecondStage:
    scores = normal(4, seed=9).expand(len(LOGGED), -1)
    return SecondStage(scores, alpha, num_sets, set_size, 1.0, torch.Generator().manual_seed(seed))


def gradient(name: str, logits: Tensor, num_candidates: int = 1, stage: SecondStage | None = None) -> Tensor:
    loss = LOGGED_LOSSES[name](policy_of(logits, num_candidates, stage), whole_log()).mean()
    return torch.autograd.grad(loss, logits)[0]


def ascent(value: Tensor, logits: Tensor) -> Tensor:
    return -torch.autograd.grad(value, logits)[0]


def draw_probabilities(logits: Tensor, num_candidates: int) -> Tensor:
    return ESTIMATORS["ca-swr"](logits[None], torch.arange(4)[None], torch.zeros(1, num_candidates).long())[0].exp()


@pytest.mark.parametrize("num_experts", [1, 2])
def test_1_ips_follows_the_expected_reward_of_one_draw(num_experts: int) -> None:
    logits = normal(num_experts, 4).requires_grad_()
    value = (draw_probabilities(logits, 3) * REWARD).sum()
    torch.testing.assert_close(gradient("ips", logits, 3), ascent(value, logits), rtol=0, atol=1e-12)


def test_cross_entropy_follows_the_logs_own_frequencies() -> None:
    logits = normal(1, 4).requires_grad_()
    value = (BETA * REWARD * logits[0].log_softmax(0)).sum()
    torch.testing.assert_close(gradient("ce", logits), ascent(value, logits), rtol=0, atol=1e-12)


def test_the_top_k_correction_follows_the_chance_to_be_among_k_draws() -> None:
    logits = normal(1, 4).requires_grad_()
    value = ((1 - (1 - logits[0].softmax(0)) ** 3) * REWARD).sum()
    torch.testing.assert_close(gradient("topk-ips", logits, 3), ascent(value, logits), rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_experts", [1, 2])
def test_ca_poisson_follows_the_rewards_of_what_is_included(num_experts: int) -> None:
    """Self-normalised, the weights' mean over the log is sum_a pi(a) = K."""
    logits = normal(num_experts, 4, seed=2).requires_grad_()
    value = (log_inclusion_probabilities(logits[None], 2)[0].exp() * REWARD).sum() / 2
    torch.testing.assert_close(gradient("ca-poisson-ips", logits, 2), ascent(value, logits), rtol=0, atol=1e-9)


def test_ca_swr_is_the_credit_assigned_score_under_the_inclusion_weight() -> None:
    logits = normal(1, 4).requires_grad_()
    log_p = logits[0].log_softmax(0)
    inclusion = (1 - (1 - log_p.exp()) ** 3).detach()
    value = (inclusion * REWARD * log_p).sum() / inclusion.sum()
    torch.testing.assert_close(gradient("ca-swr-ips", logits, 3), ascent(value, logits), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["topk-ips", "ca-swr-ips", "two-stage-ips"])
def test_one_candidate_makes_it_1_ips(name: str) -> None:
    logits = normal(1, 4).requires_grad_()
    stage = stage_of(set_size=1, num_sets=7)
    torch.testing.assert_close(gradient(name, logits, 1, stage), gradient("ips", logits), rtol=0, atol=1e-14)


def test_ca_poisson_nears_1_ips_where_one_candidate_is_drawn_from_items_of_small_chance() -> None:
    count = 2000
    logits = 0.1 * normal(1, 1, count)
    items = torch.arange(count)
    beta = torch.full((count,), 1 / count, dtype=torch.float64)
    batch = LoggedBatch(items * 0, items, normal(count, seed=3), beta, beta)
    one, other = (
        torch.autograd.grad(LOGGED_LOSSES[name](CurrentPolicy(rows, 1), batch).mean(), rows)[0].sum(dim=0)
        for name in ("ca-poisson-ips", "ips")
        for rows in [logits.expand(count, -1, -1).clone().requires_grad_()]
    )
    assert float((one - other).norm() / other.norm()) < 2e-3


def by_hand(logits: Tensor, alpha: float, num_draws: int) -> Tensor:
    """The expectation of 2-IPS: every ordered set of draws by its probability, set by set. logits (1, N)."""
    scores, log_p = stage_of().scores[0], logits[0].log_softmax(0)
    p, total = log_p.exp().detach(), torch.zeros((), dtype=torch.float64)
    for item in range(4):
        for drawn in product(range(4), repeat=num_draws):
            others = sorted(set(drawn) - {item})
            q = scores[[item, *others]].softmax(0)[0]
            chance = p[item] * p[list(drawn)].prod() * REWARD[item]
            total = total + chance * q * (log_p[item] + alpha * log_p[others].sum())
    return total


@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.7])
def test_the_credits_of_all_sets_are_2_ips_in_expectation(alpha: float) -> None:
    """p = (3, 2, 1, 2) / 8: two draws are 64 equally likely pairs of eight tickets, so no draw is needed."""
    logits = (3 * BETA).log()[None].clone().requires_grad_()  # p = beta: all weights 1
    pairs = torch.tensor([sorted(pair) for pair in product(LOGGED.tolist(), repeat=2)])
    credit = credits(pairs.expand(len(LOGGED), -1, -1), LOGGED, stage_of().scores, alpha)
    value = (REWARD[LOGGED] * (credit * logits[0].log_softmax(0)).sum(dim=1)).mean()
    expected = by_hand(logits, alpha, 2)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(ascent(value, logits), ascent(expected, logits), rtol=0, atol=1e-12)


def test_2_ips_with_many_sets_nears_its_expectation() -> None:
    logits = normal(1, 4).requires_grad_()
    stage = stage_of(num_sets=20_000)
    expected = ascent(by_hand(logits, 0.5, 2), logits)
    torch.testing.assert_close(gradient("two-stage-ips", logits, 1, stage), expected, rtol=0, atol=4e-3)


def test_2_ips_without_its_other_items_is_1_ips_where_the_ranker_is_sure_of_the_logged_item() -> None:
    logits = normal(1, 4).requires_grad_()
    sure = torch.zeros(8, 4, dtype=torch.float64)
    sure[torch.arange(8), LOGGED] = 1e6
    found = gradient("two-stage-ips", logits, 1, stage_of(alpha=0.0)._replace(scores=sure))
    torch.testing.assert_close(found, gradient("ips", logits), rtol=0, atol=1e-12)


def test_equal_scores_share_a_set_evenly() -> None:
    # {0} + (1, 1, 2) has three items, {0} + (0, 0, 3) two: q = 1/3 and 1/2, their mean 5/12.
    sets = torch.tensor([[[1, 1, 2], [0, 0, 3]]])
    credit = credits(sets, torch.tensor([0]), torch.zeros(1, 4, dtype=torch.float64), 0.1)
    expected = torch.tensor([[5 / 12, 0.1 / 6, 0.1 / 6, 0.1 / 4]], dtype=torch.float64)
    torch.testing.assert_close(credit, expected, rtol=0, atol=1e-12)


def test_weights_are_capped_before_they_are_divided_by_their_mean() -> None:
    # p / beta = 100, 1, 1e-6 -> 10, 1, 0.01, of mean 3.67.
    weights = importance_weights(torch.tensor([0.5, 0.5, 5e-7]).log(), torch.tensor([0.005, 0.5, 0.5]))
    torch.testing.assert_close(weights, torch.tensor([10, 1, 0.01]) / (11.01 / 3), rtol=1e-5, atol=0)


def test_2_ips_needs_a_second_stage() -> None:
    with pytest.raises(ValueError, match="two-stage-ips needs a second stage"):
        LOGGED_LOSSES["two-stage-ips"](policy_of(normal(1, 4)), whole_log())


def infonce_gradient(logits: Tensor, negatives: Negatives) -> Tensor:
    loss = LOGGED_LOSSES["infonce"](policy_of(logits, 2, negatives=negatives), whole_log()).mean()
    return torch.autograd.grad(loss, logits)[0]


UNCORRECTED = torch.zeros(4, dtype=torch.float64)
"""Of items that are all as frequent: nothing but a constant is subtracted."""


@pytest.mark.parametrize("num_experts", [1, 2])
def test_infonce_is_the_full_softmax_where_every_item_is_in_the_pool_as_often_as_expected(num_experts: int) -> None:
    """The batch is the whole log, and the random items are every item twice; without logQ it is something else."""
    logits = normal(num_experts, 4).requires_grad_()
    loss = LOGGED_LOSSES["ce"](policy_of(logits, 2), whole_log()).mean()
    full = torch.autograd.grad(loss, logits)[0]
    for items in (torch.arange(4).repeat(2), torch.tensor([], dtype=torch.long)):
        found = infonce_gradient(logits, Negatives(items, BETA.log()))
        torch.testing.assert_close(found, full, rtol=0, atol=1e-14)
        uncorrected = infonce_gradient(logits, Negatives(items, UNCORRECTED))
        assert float((uncorrected - full).norm() / full.norm()) > 0.03


def expected_infonce_gradient(logits: Tensor, num_drawn: int, log_shares: Tensor) -> Tensor:
    """The mean over every batch of `num_drawn` impressions of three items, by its probability; logits (1, 3).

    A batch's order changes nothing: one order of each is taken, as often as it has others.
    """
    chance = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    drawn = torch.tensor(list(combinations_with_replacement(range(3), num_drawn)))  # (S, B)
    orders = [
        math.factorial(num_drawn) / math.prod(map(math.factorial, Counter(row).values())) for row in drawn.tolist()
    ]
    weights = torch.tensor(orders, dtype=torch.float64) * chance[drawn].prod(dim=1)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
    total = torch.zeros_like(logits)
    for batch, weight in zip(drawn, weights, strict=True):
        ones = torch.ones(num_drawn, dtype=torch.float64)
        policy = CurrentPolicy(
            logits.expand(num_drawn, 1, 3), 1, negatives=Negatives(torch.tensor([], dtype=torch.long), log_shares)
        )
        loss = LOGGED_LOSSES["infonce"](policy, LoggedBatch(batch * 0, batch, ones, ones, ones)).mean()
        total += weight * torch.autograd.grad(loss, logits)[0]
    return total


def test_the_expected_gradient_of_infonce_nears_the_full_softmax_s_with_logq_correction_alone() -> None:
    """Its bias falls as one over the batch, 64 %, 36 %, 19 % of the gradient; without, it stays at 111 % to 119 %."""
    chance = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    logits = 0.5 * normal(1, 3, seed=2)
    full = logits.softmax(dim=1) - chance
    logits.requires_grad_()

    def bias(num_drawn: int, log_shares: Tensor) -> float:
        return float((expected_infonce_gradient(logits, num_drawn, log_shares) - full).norm() / full.norm())

    corrected = [bias(count, chance.log()) for count in (2, 4, 8)]
    uncorrected = [bias(count, torch.zeros(3, dtype=torch.float64)) for count in (2, 4, 8)]
    assert corrected[1] < 0.6 * corrected[0]
    assert corrected[2] < 0.55 * corrected[1]
    assert min(uncorrected) > 1


def test_infonce_needs_negatives() -> None:
    with pytest.raises(ValueError, match="infonce needs negatives"):
        LOGGED_LOSSES["infonce"](policy_of(normal(1, 4)), whole_log())


def test_the_table_is_what_the_settings_name() -> None:
    assert set(LOGGED_LOSSES) == set(OFF_POLICY)


@pytest.mark.parametrize("num_candidates", [1, 3, 6])
@pytest.mark.parametrize("num_experts", [1, 3])
@pytest.mark.parametrize("name", sorted(LOGGED_LOSSES))
def test_contract(name: str, num_experts: int, num_candidates: int) -> None:
    """One loss per impression, rewards of 0 teach nothing, every gradient is finite, whatever leads."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, num_experts, 6, generator=generator)
    logits[0, :, 2] += 60  # shown
    logits[1, :, 2] += 60  # not shown
    logits.requires_grad_()
    items = torch.tensor([2, 0, 5, 5, 1])
    batch = LoggedBatch(items, items, torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]), *[torch.full((5,), 0.2)] * 2)
    scores = 40 * torch.randn(5, 6, generator=generator)
    shares = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 2.0]).div(5).log()  # of items that were never shown too
    negatives = Negatives(torch.tensor([2, 3]), shares)
    policy = CurrentPolicy(logits, num_candidates, SecondStage(scores, 0.01, 3, 4, 1.0, generator), negatives)
    losses = LOGGED_LOSSES[name](policy, batch)
    assert losses.shape == (5,)
    assert losses.dtype == logits.dtype
    assert (losses >= 0).all(), "rewards above 0 of log-probabilities below it"
    (gradients,) = torch.autograd.grad(losses.sum(), logits)
    assert gradients.isfinite().all()
    assert (gradients[4] == 0).all()
    owned = min(num_experts, num_candidates)
    assert (gradients[:, owned:] == 0).all(), "an expert without a position learns nothing"
