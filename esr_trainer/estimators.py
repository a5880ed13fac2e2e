"""Estimators: the log-probabilities whose gradient, times the reward, trains the ESR.

The loss is -mean_b sum_l w_l r_bl log p_bl. V-PG takes the probability of the drawn candidates; the CA family takes the
probability that the shown item is among any candidates. Formulas: DESIGN §4; sources: arXiv:2605.26385 §3 and App. D.

Axes: B batch, M experts, N items, K positions, L slots. Everything stays in log space and nothing is subtracted that
could cancel, so log-probabilities and gradients are finite and right for logits in [-80, 80].
"""

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from esr_trainer.head_inclusion import has_closed_form, log_inclusion, races
from esr_trainer.inclusion import log_stopping_times
from esr_trainer.normalisers import gather_items, log_softmax_of, taken_and_left, weighed
from esr_trainer.quotas import expert_of_position, quotas
from esr_trainer.shards import Logits, of_experts, parts_of, shared_as, without
from esr_trainer.sharp_races import log_arrival_probability


class Estimator(Protocol):
    """The log-probability of each slot's item."""

    def __call__(
        self, logits: Logits, slate: Tensor, candidates: Tensor, log_weight: Tensor | None = None, /
    ) -> Tensor:
        """(B, L), none above 0.

        Args:
            logits: (B, M, N).
            slate: (B, L), items.
            candidates: (B, K), items in the order drawn.
            log_weight: log of how many items a column of the logits stands for, (B, N): 0 for the slate's and the
                candidates', -inf for a column that is not there; None where each is one item. Where the weighted
                columns are an unbiased sample of a catalogue, so is every normaliser (`esr_trainer.catalogue_sample`).
        """


def v(logits: Logits, slate: Tensor, candidates: Tensor, log_weight: Tensor | None = None) -> Tensor:
    """V-PG: the exact log-probability of the ordered candidates, the same for every slot.

    log P(A) = sum_k [ f^m(k)(a_k) - LSE over items not in a_<k of f^m(k) ] (arXiv:2605.26385 Eq. 3). The items left at
    position k are those outside A and a_k..a_K, so each expert's K normalisers are one cumulative sum from behind.

    Args:
        logits: (B, M, N).
        slate: (B, L), items; only its shape is used.
        candidates: (B, K), items in the order drawn.
        log_weight: as of `Estimator`.

    Returns:
        (B, L).
    """
    picked, normalisers = taken_and_left(weighed(logits, log_weight), candidates)  # (B, M, K) each
    expert = torch.tensor(expert_of_position(candidates.shape[1], logits.shape[1]), device=logits.device)
    log_prob = (picked - normalisers).gather(1, expert.expand(len(logits), 1, -1)).sum(dim=(1, 2))
    return log_prob.clamp(max=0)[:, None].expand(-1, slate.shape[1])


def v_swr(logits: Logits, slate: Tensor, candidates: Tensor, log_weight: Tensor | None = None) -> Tensor:
    """V-PG-SwR: the candidates' log-probability as if drawn with replacement, the same for every slot.

    sum_k log softmax_m(k)(a_k) (arXiv:2605.26385 §4.1, "SwR"); biased, since candidates are drawn without replacement.

    Args:
        logits: (B, M, N).
        slate: (B, L), items; only its shape is used.
        candidates: (B, K), items.
        log_weight: as of `Estimator`.

    Returns:
        (B, L).
    """
    expert = torch.tensor(expert_of_position(candidates.shape[1], logits.shape[1]), device=logits.device)
    log_softmax = log_softmax_of(weighed(logits, log_weight), candidates)  # (B, M, K)
    log_prob = log_softmax.gather(1, expert.expand(len(logits), 1, -1)).sum(dim=(1, 2))
    return log_prob.clamp(max=0)[:, None].expand(-1, slate.shape[1])


def ca(logits: Logits, slate: Tensor, candidates: Tensor, log_weight: Tensor | None = None) -> Tensor:
    """CA-PG: the chance that the item is among the candidates while the other positions stay greedy.

    pi(a) = 1 - prod_k (1 - p_k(a)), p_k(a) = exp f^m(k)(a) / sum over items not in S_<k of exp f^m(k), where S_<k are
    the items that the positions before k greedily take when `a` is not there (arXiv:2605.26385 App. D.1). In log space
    log pi = LSE_k( log p_k + sum_{j<k} log(1 - p_j) ), and with W_k the log-normaliser of what is left without `a`,
    log p_k = log sigmoid(f(a) - W_k) and log(1 - p_k) = log sigmoid(W_k - f(a)).

    Args:
        logits: (B, M, N).
        slate: (B, L), items.
        candidates: (B, K); only its number of positions is used.
        log_weight: as of `Estimator`; the greedy items are sought among the columns of weight 1.

    Returns:
        (B, L).
    """
    logits, num_candidates = weighed(logits, log_weight), candidates.shape[1]
    if num_candidates == logits.shape[2]:
        return gather_items(logits, slate).sum(dim=1) * 0.0  # sure to be in: log 1, gradient 0
    keys = parts_of(logits).here.detach()
    if log_weight is not None:
        keys = keys.masked_fill((log_weight != 0)[:, None], -torch.inf)
    leads = one_expert_leads if logits.shape[1] == 1 else mixture_leads
    lead = leads(logits, shared_as(logits, keys), slate, num_candidates)
    log_taken, log_passed = logsigmoid(lead), logsigmoid(-lead)
    passed_before = log_passed.cumsum(dim=2) - log_passed
    return (log_taken + passed_before).logsumexp(dim=2).clamp(max=0)


def ca_swr(logits: Logits, slate: Tensor, candidates: Tensor, log_weight: Tensor | None = None) -> Tensor:
    """CA-PG-SwR, and TOP1-PG: the item's expected share of draws with replacement.

    log sum_m (K_m / K) softmax_m(a) (arXiv:2605.26385 §3.3, less the constant log K); with one expert, log softmax(a).

    Args:
        logits: (B, M, N).
        slate: (B, L), items.
        candidates: (B, K); only its number of positions is used.
        log_weight: as of `Estimator`.

    Returns:
        (B, L).
    """
    shares = [quota / candidates.shape[1] for quota in quotas(candidates.shape[1], logits.shape[1]) if quota]
    log_share = torch.tensor([math.log(share) for share in shares], dtype=logits.dtype, device=logits.device)
    log_softmax = log_softmax_of(weighed(of_experts(logits, len(shares)), log_weight), slate)  # (B, M, L)
    return (log_softmax + log_share[:, None]).logsumexp(dim=1).clamp(max=0)


def ca_poisson(logits: Logits, slate: Tensor, candidates: Tensor, log_weight: Tensor | None = None) -> Tensor:
    """CA-PG in closed form: the item's inclusion probability when the races for the positions stop at fixed times.

    log pi(a) = log(1 - exp(-sum_m e^f^m(a) tau_m)) with sum_a pi(a) = K; see `esr_trainer.inclusion`. For one expert
    the score function is (s_a / pi_a) (e_a - q), s = z e^-z, q = s / sum s: no push on items that are sure to be in,
    and a baseline that sits on the items at the margin.

    Args:
        logits: (B, M, N).
        slate: (B, L), items.
        candidates: (B, K); only its number of positions is used.
        log_weight: as of `Estimator`.

    Returns:
        (B, L).
    """
    log_times = log_stopping_times(logits, candidates.shape[1], log_weight)
    exposure = gather_items(of_experts(logits, log_times.shape[1]), slate).double() + log_times[:, :, None]
    return log_arrival_probability(exposure.logsumexp(dim=1)).to(logits.dtype)


def ca_heads(logits: Logits, slate: Tensor, candidates: Tensor, log_weight: Tensor | None = None) -> Tensor:
    """CA-PG draw by draw: the item's inclusion probability, the few heaviest items followed exactly.

    log pi(a) = log sum of d(a) over all draws, see `esr_trainer.head_inclusion`; exact for one draw per expert and one
    expert, where it is log softmax. Quotas above 4, or items that hardly outnumber the positions, are left to
    `ca-poisson`, and so is a context whose logits the draws cannot follow.

    Args:
        logits: (B, M, N).
        slate: (B, L), items.
        candidates: (B, K); only its number of positions is used.
        log_weight: None.

    Returns:
        (B, L).

    Raises:
        ValueError: there are weights: the draws follow whole items.
    """
    if log_weight is not None:
        raise ValueError("ca-heads follows whole items, and has no form for columns with weights")
    num_candidates = candidates.shape[1]
    if not has_closed_form(logits.shape[2], num_candidates, logits.shape[1]):
        return ca_poisson(logits, slate, candidates)
    done, is_sound = races(logits, num_candidates)
    log_prob = log_inclusion(done, slate, parts_of(logits).shards).to(logits.dtype)
    return log_prob if is_sound.all() else log_prob.where(is_sound[:, None], ca_poisson(logits, slate, candidates))


def one_expert_leads(logits: Logits, keys: Logits, slate: Tensor, num_candidates: int) -> Tensor:
    """f(a) - W_k of `ca` for one expert: W_k is what is left at each position without the slot's item, in log space.

    All slots share one top K + 1: without an item of it the others are the greedy positions, in the published order
    (the next item takes its place), and the rest of the catalogue is left in the end. With C_k what is left of the
    catalogue at its k-th best item, W_k is C_k without the item until its own place, C_(k+1) there, and C_k without
    the (K+1)-th item behind. What is taken off is no larger than the k-th item: at most half goes, so nothing cancels.

    Args:
        logits: (B, 1, N), with K < N.
        keys: the same without history, -inf where a column is no single item.
        slate: (B, L), items.
        num_candidates: K.

    Returns:
        (B, L, K).
    """
    here, shards = parts_of(keys)
    best = shards.best(here[:, 0], num_candidates + 1)
    value, left = taken_and_left(logits, best)  # (B, 1, K + 1) each
    item = gather_items(logits, slate).transpose(1, 2)  # (B, L, 1)
    is_here = best[:, None, :-1] == slate[:, :, None]  # (B, L, K)
    is_passed = is_here.cumsum(dim=2) > 0
    gone = torch.where(is_passed, value[..., -1:], item)
    without_item = left[..., :-1] + torch.log1p(-(gone - left[..., :-1]).exp())
    return item - torch.where(is_here, left[..., 1:], without_item)


def mixture_leads(logits: Logits, keys: Logits, slate: Tensor, num_candidates: int) -> Tensor:
    """f(a) - W_k of `ca` for several experts: (B, M, N) twice, (B, L) -> (B, L, K), of each position's expert.

    What earlier experts take depends on the slot's item, so every slot has a catalogue of its own; the item is the
    first that is taken from it.
    """
    rivals = shared_as(logits, in_every_slot(parts_of(logits).here, slate.shape[1]))
    gone = torch.cat([slate[:, :, None], greedy_without(keys, slate, num_candidates)], dim=2).flatten(0, 1)
    value, left = taken_and_left(rivals, gone)  # (B * L, M, 1 + K) each
    expert = torch.tensor(expert_of_position(num_candidates, logits.shape[1]), device=logits.device)
    lead = (value[..., :1] - left[..., 1:]).gather(1, expert.expand(len(gone), 1, -1))
    return lead.view(*slate.shape, num_candidates)


def greedy_without(keys: Logits, slate: Tensor, num_candidates: int) -> Tensor:
    """The greedy candidates with each slot's item replaced by its expert's next item, in the same place.

    This is the published rule (arXiv:2605.26385 App. D.1): the replacement also counts as taken for later experts.
    Closing the gap instead, so that the positions behind move up, would be the greedy policy on the catalogue without
    the item; the two differ by up to 1e-2 in log-probability.

    Args:
        keys: (B, M, N), with K < N; -inf for what is not to be picked.
        slate: (B, L), items.
        num_candidates: K.

    Returns:
        Items, (B, L, K), none of them the slot's.
    """
    here, shards = parts_of(keys)
    picks = slate.new_empty((*slate.shape, 0))
    for expert, quota in enumerate(quotas(num_candidates, here.shape[1])[:num_candidates]):  # that own a position
        of_expert = here[:, expert, None]
        if expert:
            of_expert = without(in_every_slot(of_expert, slate.shape[1]), picks.flatten(0, 1), shards)
        best = shards.best(of_expert[:, 0], quota + 1).view(len(slate), -1, quota + 1)
        picks = torch.cat([picks, best[..., :-1].where(best[..., :-1] != slate[..., None], best[..., -1:])], dim=2)
    return picks


def in_every_slot(values: Tensor, num_slots: int) -> Tensor:
    """The same for each of a context's slots: (B, ...) -> (B * L, ...)."""
    return values[:, None].expand(-1, num_slots, *values.shape[1:]).flatten(0, 1)


ESTIMATORS: Mapping[str, Estimator] = {
    "v": v,
    "v-swr": v_swr,
    "ca": ca,
    "ca-swr": ca_swr,
    "top1": ca_swr,
    "ca-poisson": ca_poisson,
    "ca-heads": ca_heads,
}
