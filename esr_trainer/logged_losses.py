"""LOGGED_LOSSES: what an ESR that learns from a log descends, per logged impression.

A log holds contexts x, the items a that were shown there, their rewards r, and how probably the logging system showed
them, beta(a | x). Importance weights are p / beta without gradient, capped to WEIGHTS and then divided by their batch
mean, so that no loss follows the log's own choices (Ma et al., WWW 2020, doi:10.1145/3366423.3380130; Chen et al., WSDM
2019; DESIGN §4). The policy p(a | x) is one draw of the mixture, sum_m (K_m / K) softmax_m(a): `ESTIMATORS["ca-swr"]`.

Axes: B batch, M experts, N items, K candidates, T sets, D draws of a set.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from esr_trainer.estimators import ca_poisson, ca_swr
from esr_trainer.normalisers import gather_items, log_softmax_of
from esr_trainer.quotas import quotas
from esr_trainer.set_draws import draw_sets

WEIGHTS = (0.01, 10.0)
"""Least and most of an importance weight, before it is divided by the batch's mean."""


class LoggedBatch(NamedTuple):
    """Logged impressions: one row is one item that was shown."""

    contexts: Tensor
    """Rows, (B,) int64."""
    items: Tensor
    """Rows, (B,) int64."""
    rewards: Tensor
    """(B,)."""
    propensities: Tensor
    """beta(a | x), the chance that the item was shown, (B,) in (0, 1]."""
    inclusions: Tensor
    """The chance that the item was a candidate, (B,) in (0, 1]; the propensity where the log knows of no candidates."""

    def take(self, rows: Tensor) -> "LoggedBatch":
        """Some of them."""
        return LoggedBatch(*(values[rows] for values in self))


class SecondStage(NamedTuple):
    """What `two-stage-ips` needs beside the policy."""

    scores: Tensor
    """Logits of the late-stage ranker's softmax for the whole catalogue, (B, N)."""
    alpha: float
    """Weight of the other items of a set."""
    num_sets: int
    """tau, sets drawn per impression."""
    set_size: int
    """k, the logged item included."""
    temperature: float
    """The sets are drawn from softmax(logits / temperature) of the policy."""
    generator: torch.Generator
    """The source of the sets."""


class Negatives(NamedTuple):
    """What `infonce` compares a shown item with, beside the items of the batch."""

    items: Tensor
    """Random items of the catalogue, uniform with replacement, (J,)."""
    log_shares: Tensor
    """log of each item's share of the impressions that batches are drawn from, (N,); -inf where it was never shown."""


class CurrentPolicy(NamedTuple):
    """The policy that learns, in the contexts of a batch."""

    logits: Tensor
    """(B, M, N)."""
    num_candidates: int
    """K."""
    second_stage: SecondStage | None = None
    """For `two-stage-ips`."""
    negatives: Negatives | None = None
    """For `infonce`."""

    def positions(self) -> Tensor:
        """As many positions as candidates, (B, K): all that ESTIMATORS ask of candidates here."""
        return torch.zeros((), dtype=torch.long, device=self.logits.device).expand(
            len(self.logits), self.num_candidates
        )


LoggedLoss = Callable[[CurrentPolicy, LoggedBatch], Tensor]
"""-> the loss of each impression, (B,), whose mean is descended."""


def ce(policy: CurrentPolicy, batch: LoggedBatch) -> Tensor:
    """Cross-entropy: -r log p(a | x), whatever the logging system preferred (Ma et al. §5).

    Args:
        policy: one draw of it is p.
        batch: propensities are not used.

    Returns:
        (B,).
    """
    return -batch.rewards * log_draw_probability(policy, batch.items)


def ips(policy: CurrentPolicy, batch: LoggedBatch) -> Tensor:
    """1-IPS: -r w log p(a | x), w = p(a | x) / beta(a | x) (Ma et al. Eq. 3 and §4.2).

    Its gradient is that of the expected reward of one draw, -sum_a p(a | x) r(a), where no weight is capped.

    Args:
        policy: one draw of it is p.
        batch: what was shown.

    Returns:
        (B,).
    """
    log_prob = log_draw_probability(policy, batch.items)
    return -batch.rewards * importance_weights(log_prob, batch.propensities) * log_prob


def topk_ips(policy: CurrentPolicy, batch: LoggedBatch) -> Tensor:
    """Top-K correction: the 1-IPS term times lambda_K = K (1 - p)^(K - 1), without gradient (Chen et al. §4.3).

    Its gradient is that of the chance to be among K draws with replacement, -sum_a (1 - (1 - p(a))^K) r(a).

    Args:
        policy: one draw of it is p.
        batch: what was shown.

    Returns:
        (B,).
    """
    log_prob = log_draw_probability(policy, batch.items)
    others = -torch.expm1(log_prob.detach())  # 1 - p
    correction = policy.num_candidates * others.pow(policy.num_candidates - 1)
    return -batch.rewards * importance_weights(log_prob, batch.propensities) * correction * log_prob


def two_stage_ips(policy: CurrentPolicy, batch: LoggedBatch) -> Tensor:
    """2-IPS: 1-IPS where the item only earns what the ranker lets through (Ma et al. Eq. 6 and §4.3).

    -r w (1/T) sum_t q(a | x, {a} + A_t) ( log p(a | x) + alpha sum of log p(a' | x) over the distinct a' != a of it ),
    A_t k - 1 draws of the policy with replacement, q the ranker's softmax on the set, and no gradient but of log p.

    Args:
        policy: with its second stage.
        batch: what was shown.

    Returns:
        (B,).

    Raises:
        ValueError: the policy has no second stage.
    """
    stage = policy.second_stage
    if stage is None:
        raise ValueError("two-stage-ips needs a second stage: the ranker's scores and how sets are drawn")
    log_probs = log_draw_probabilities(policy)
    with torch.no_grad():
        logits = log_probs / stage.temperature
        sets = draw_sets(logits, stage.num_sets, stage.set_size - 1, stage.generator)
        credit = credits(sets, batch.items, stage.scores, stage.alpha)
    log_prob = log_probs.gather(1, batch.items[:, None])[:, 0]
    weights = importance_weights(log_prob, batch.propensities)
    followed: Tensor = torch.linalg.vecdot(credit, log_probs)
    return -batch.rewards * weights * followed


def ca_swr_ips(policy: CurrentPolicy, batch: LoggedBatch) -> Tensor:
    """CA off policy, as if drawn with replacement: -r w log p(a | x), w = pi(a in set | x) / logged pi(a in set | x).

    pi(a in set) = 1 - prod_m (1 - softmax_m(a))^K_m. None of the sources has it; for K = 1 it is 1-IPS.

    Args:
        policy: its candidates are K draws with replacement.
        batch: what was shown.

    Returns:
        (B,).
    """
    score = log_draw_probability(policy, batch.items)
    log_inclusion = log_inclusion_with_replacement(policy, batch.items)
    return -batch.rewards * importance_weights(log_inclusion, batch.inclusions) * score


def ca_poisson_ips(policy: CurrentPolicy, batch: LoggedBatch) -> Tensor:
    """CA off policy in closed form: -r w log pi(a in set | x), w = pi(a in set | x) / logged pi(a in set | x).

    Its gradient is that of -sum_a pi(a in set) r(a), where no weight is capped; pi as of `ca-poisson`. None of the
    sources has it.

    Args:
        policy: its candidates are drawn as it is served.
        batch: what was shown.

    Returns:
        (B,).
    """
    log_inclusion = ca_poisson(policy.logits, batch.items[:, None], policy.positions())[:, 0]
    return -batch.rewards * importance_weights(log_inclusion, batch.inclusions) * log_inclusion


def infonce(policy: CurrentPolicy, batch: LoggedBatch) -> Tensor:
    """InfoNCE with in-batch and random negatives and logQ correction: cross-entropy against a pool of items.

    -r log sum_m (K_m / K) exp g_m(a) / sum over a' in the pool of exp g_m(a'), with g_m(a) = f_m(x, a) - log Q(a) (Yi
    et al., RecSys 2019, doi:10.1145/3298689.3346996, §3). The pool is the batch's B items, the shown one among them,
    and J random ones (mixed negative sampling: Yang et al., WWW 2020); Q(a) = B share(a) + J / N is how often a is
    expected in it.
    Without the correction popular items are pushed down for being in many batches. With it the pool's sum is an
    unbiased estimate of the whole catalogue's, so that the loss nears full cross-entropy, `ce`, as the pool grows.

    Args:
        policy: with its negatives.
        batch: propensities are not used.

    Returns:
        (B,).

    Raises:
        ValueError: the policy has no negatives.
    """
    if policy.negatives is None:
        raise ValueError("infonce needs negatives: random items, and how often each item is shown")
    items, log_shares = policy.negatives
    num_batch, num_items = len(batch.items), policy.logits.shape[2]
    pool = torch.cat([batch.items, items])  # (B + J,)
    log_counts = torch.logaddexp(
        log_shares + math.log(num_batch), log_shares.new_tensor(len(items) / num_items).log()
    )  # log Q, (N,)
    owned = [quota for quota in quotas(policy.num_candidates, policy.logits.shape[1]) if quota]
    corrected = policy.logits[:, : len(owned)] - log_counts  # (B, M, N)
    shown = gather_items(corrected, batch.items[:, None])[..., 0]
    of_experts = shown - corrected[:, :, pool].logsumexp(dim=2)  # (B, M)
    share = of_experts.new_tensor(owned).log() - math.log(policy.num_candidates)
    log_prob = (of_experts + share).logsumexp(dim=1).clamp(max=0)
    return -batch.rewards * log_prob


LOGGED_LOSSES: Mapping[str, LoggedLoss] = {
    "ce": ce,
    "ips": ips,
    "two-stage-ips": two_stage_ips,
    "topk-ips": topk_ips,
    "ca-swr-ips": ca_swr_ips,
    "ca-poisson-ips": ca_poisson_ips,
    "infonce": infonce,
}


def importance_weights(log_prob: Tensor, logged: Tensor) -> Tensor:
    """exp(log_prob) / logged, capped to WEIGHTS, then divided by the batch's mean; no gradient.

    Args:
        log_prob: of the policy that learns, (B,).
        logged: the logging system's probability of the same, (B,).

    Returns:
        (B,), of mean 1.
    """
    weights = (log_prob.detach() - logged.log()).exp().clamp(*WEIGHTS)
    return weights / weights.mean()


def log_draw_probability(policy: CurrentPolicy, items: Tensor) -> Tensor:
    """log p(a | x) of one item per context: (B,) -> (B,)."""
    return ca_swr(policy.logits, items[:, None], policy.positions())[:, 0]


def log_draw_probabilities(policy: CurrentPolicy) -> Tensor:
    """log p(a | x) of the whole catalogue, (B, N)."""
    owned = [quota for quota in quotas(policy.num_candidates, policy.logits.shape[1]) if quota]
    if len(owned) == 1:
        return policy.logits[:, 0].log_softmax(dim=1)
    share = torch.tensor(owned, dtype=policy.logits.dtype, device=policy.logits.device) / policy.num_candidates
    of_experts: Tensor = policy.logits[:, : len(owned)].log_softmax(dim=2) + share.log()[:, None]
    return of_experts.logsumexp(dim=1)


def log_inclusion_with_replacement(policy: CurrentPolicy, items: Tensor) -> Tensor:
    """log( 1 - prod_m (1 - softmax_m(a))^K_m ) of one item per context, without gradient: (B,) -> (B,)."""
    owned = [quota for quota in quotas(policy.num_candidates, policy.logits.shape[1]) if quota]
    log_softmax = log_softmax_of(policy.logits.detach()[:, : len(owned)], items[:, None])[..., 0]  # (B, M)
    draws = torch.tensor(owned, dtype=log_softmax.dtype, device=log_softmax.device)
    log_missed = (torch.log(-torch.expm1(log_softmax.clamp(max=0))) * draws).sum(dim=1)
    return torch.log(-torch.expm1(log_missed))


def credits(sets: Tensor, items: Tensor, scores: Tensor, alpha: float) -> Tensor:
    """What multiplies each item's log-probability in `two_stage_ips`, the means over the sets.

    The logged item a gets q(a | x, {a} + A_t), each other item alpha times that for every set that it is in.

    Args:
        sets: (B, T, D), items ascending within a set.
        items: the logged ones, (B,).
        scores: the ranker's logits, (B, N).
        alpha: weight of the others.

    Returns:
        (B, N).
    """
    batch, num_sets, _ = sets.shape
    is_rival = sets != items[:, None, None]
    is_rival[..., 1:] &= sets[..., 1:] != sets[..., :-1]
    lead = scores - scores.gather(1, items[:, None])
    rivals = lead.exp_().gather(1, sets.flatten(1)).view(sets.shape).masked_fill_(~is_rival, 0)
    let_through = 1 / (1 + rivals.sum(dim=2))  # q, (B, T)
    of_rivals = (is_rival * (let_through * (alpha / num_sets))[:, :, None]).flatten(1)
    credit = scores.new_zeros((batch, scores.shape[1])).scatter_add_(1, sets.flatten(1), of_rivals)
    return credit.scatter_(1, items[:, None], let_through.mean(dim=1, keepdim=True))


__all__ = ["LOGGED_LOSSES", "WEIGHTS", "CurrentPolicy", "LoggedBatch", "LoggedLoss", "Negatives", "SecondStage"]
