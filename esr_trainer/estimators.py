"""Estimators: the log-probabilities whose gradient, times the reward, trains the ESR.

The loss is -mean_b sum_l w_l r_bl log p_bl. V-PG takes the probability of the drawn candidates; the CA family takes the
probability that the shown item is among any candidates. Formulas: DESIGN §4; sources: arXiv:2605.26385 §3 and App. D.

Axes: B batch, M experts, N items, K positions, L slots. Everything stays in log space and nothing is subtracted that
could cancel, so log-probabilities and gradients are finite for any finite logits.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from esr_trainer.policy import expert_of_position, quotas

Estimator = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits (B, M, N), slate (B, L), candidates (B, K)) -> log-probability of each slot's item, (B, L), none above 0."""


def v(logits: Tensor, slate: Tensor, candidates: Tensor) -> Tensor:
    """V-PG: the exact log-probability of the ordered candidates, the same for every slot.

    log P(A) = sum_k [ f^m(k)(a_k) - LSE over items not in a_<k of f^m(k) ] (arXiv:2605.26385 Eq. 3). The items left at
    position k are those outside A and a_k..a_K, so each expert's K normalisers are one reversed logcumsumexp.

    Args:
        logits: (B, M, N).
        slate: (B, L), items; only its shape is used.
        candidates: (B, K), items in the order drawn.

    Returns:
        (B, L).
    """
    normalisers = left_normalisers(logits, candidates)  # (B, M, K)
    picked = gather_items(logits, candidates)  # (B, M, K)
    expert = torch.tensor(expert_of_position(candidates.shape[1], logits.shape[1]), device=logits.device)
    log_prob = (picked - normalisers).gather(1, expert.expand(len(logits), 1, -1)).sum(dim=(1, 2))
    return log_prob.clamp(max=0)[:, None].expand(-1, slate.shape[1])


def v_swr(logits: Tensor, slate: Tensor, candidates: Tensor) -> Tensor:
    """V-PG-SwR: the candidates' log-probability as if drawn with replacement, the same for every slot.

    sum_k log softmax_m(k)(a_k) (arXiv:2605.26385 §4.1, "SwR"); biased, since candidates are drawn without replacement.

    Args:
        logits: (B, M, N).
        slate: (B, L), items; only its shape is used.
        candidates: (B, K), items.

    Returns:
        (B, L).
    """
    expert = torch.tensor(expert_of_position(candidates.shape[1], logits.shape[1]), device=logits.device)
    log_softmax = gather_items(logits, candidates) - logits.logsumexp(dim=2, keepdim=True)  # (B, M, K)
    log_prob = log_softmax.gather(1, expert.expand(len(logits), 1, -1)).sum(dim=(1, 2))
    return log_prob.clamp(max=0)[:, None].expand(-1, slate.shape[1])


def ca(logits: Tensor, slate: Tensor, candidates: Tensor) -> Tensor:
    """CA-PG: the chance that the item is among the candidates while the other positions stay greedy.

    pi(a) = 1 - prod_k (1 - p_k(a)), p_k(a) = exp f^m(k)(a) / sum over items not in S_<k of exp f^m(k), where S_<k are
    the items that the positions before k greedily take when `a` is not there (arXiv:2605.26385 App. D.1). In log space
    log pi = LSE_k( log p_k + sum_{j<k} log(1 - p_j) ), and with W_k the log-normaliser of what is left without `a`,
    log p_k = log sigmoid(f(a) - W_k) and log(1 - p_k) = log sigmoid(W_k - f(a)).

    Args:
        logits: (B, M, N).
        slate: (B, L), items.
        candidates: (B, K); only its number of positions is used.

    Returns:
        (B, L).
    """
    num_slots, num_candidates = slate.shape[1], candidates.shape[1]
    batch, num_experts, num_items = logits.shape
    if num_candidates == num_items:
        return gather_items(logits, slate).sum(dim=1) * 0.0  # sure to be in: log 1, gradient 0
    expert = torch.tensor(expert_of_position(num_candidates, num_experts), device=logits.device)
    rivals = logits[:, None].expand(-1, num_slots, -1, -1)  # (B, L, M, N): the catalogue without each slot's item
    rivals = rivals.scatter(3, slate[:, :, None, None].expand(-1, -1, num_experts, 1), -torch.inf).flatten(0, 1)
    greedy = greedy_without(logits, slate, num_candidates).flatten(0, 1)  # (B*L, K)
    normalisers = left_normalisers(rivals, greedy)  # (B*L, M, K)
    without = normalisers.gather(1, expert.expand(len(rivals), 1, -1)).view(batch, num_slots, num_candidates)
    item = gather_items(logits, slate)[:, expert].transpose(1, 2)  # (B, L, K)
    log_taken = torch.nn.functional.logsigmoid(item - without)
    log_passed = torch.nn.functional.logsigmoid(without - item)
    passed_before = log_passed.cumsum(dim=2) - log_passed
    return (log_taken + passed_before).logsumexp(dim=2).clamp(max=0)


def ca_swr(logits: Tensor, slate: Tensor, candidates: Tensor) -> Tensor:
    """CA-PG-SwR, and TOP1-PG: the item's expected share of draws with replacement.

    log sum_m (K_m / K) softmax_m(a) (arXiv:2605.26385 §3.3, less the constant log K); with one expert, log softmax(a).

    Args:
        logits: (B, M, N).
        slate: (B, L), items.
        candidates: (B, K); only its number of positions is used.

    Returns:
        (B, L).
    """
    shares = [quota / candidates.shape[1] for quota in quotas(candidates.shape[1], logits.shape[1]) if quota]
    log_share = torch.tensor([math.log(share) for share in shares], dtype=logits.dtype, device=logits.device)
    active = logits[:, : len(shares)]
    log_softmax = gather_items(active, slate) - active.logsumexp(dim=2, keepdim=True)  # (B, M, L)
    return (log_softmax + log_share[:, None]).logsumexp(dim=1).clamp(max=0)


def gather_items(logits: Tensor, items: Tensor) -> Tensor:
    """Every expert's logits of some items: (B, M, N), (B, J) -> (B, M, J)."""
    return logits.gather(2, items[:, None, :].expand(-1, logits.shape[1], -1))


def left_normalisers(logits: Tensor, taken: Tensor) -> Tensor:
    """Log-normaliser over the items not in a_<k, for every expert and position.

    LSE over {items outside a_1..a_K} + {a_k..a_K}: one logsumexp, then a reversed logcumsumexp.

    Args:
        logits: (B, M, N); -inf marks an item that is not there.
        taken: (B, K), distinct items that are there.

    Returns:
        (B, M, K).
    """
    index = taken[:, None, :].expand(-1, logits.shape[1], -1)
    chain = logits.gather(2, index).flip(2)
    if taken.shape[1] < logits.shape[2]:
        outside = logits.scatter(2, index, -torch.inf).logsumexp(dim=2, keepdim=True)
        return torch.cat([outside, chain], dim=2).logcumsumexp(dim=2)[:, :, 1:].flip(2)
    return chain.logcumsumexp(dim=2).flip(2)


def greedy_without(logits: Tensor, slate: Tensor, num_candidates: int) -> Tensor:
    """The greedy candidates with each slot's item replaced by its expert's next item, in the same place.

    This is the published rule (arXiv:2605.26385 App. D.1): the replacement also counts as taken for later experts.
    Closing the gap instead, so that the positions behind move up, would be the greedy policy on the catalogue without
    the item; the two differ by up to 1e-2 in log-probability.

    Args:
        logits: (B, M, N), with K < N.
        slate: (B, L), items.
        num_candidates: K.

    Returns:
        Items, (B, L, K), none of them the slot's.
    """
    logits, picks = logits.detach()[:, None], logits.new_empty((len(logits), slate.shape[1], 0), dtype=torch.long)
    for expert, quota in enumerate(quotas(num_candidates, logits.shape[2])):
        keys = logits[:, :, expert]
        if expert:
            keys = keys.expand(-1, slate.shape[1], -1).scatter(2, picks, -torch.inf)
        best = keys.topk(quota + 1).indices
        picks = torch.cat([picks, best[..., :-1].where(best[..., :-1] != slate[..., None], best[..., -1:])], dim=2)
    return picks


ESTIMATORS: Mapping[str, Estimator] = {"v": v, "v-swr": v_swr, "ca": ca, "ca-swr": ca_swr, "top1": ca_swr}
