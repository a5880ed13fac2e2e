"""Log-normalisers over a catalogue with closed-form gradients: one pass over (B, M, N) forward and one backward.

Autograd's own gradients of gather, scatter and logsumexp would each fill and add an array of the size of the logits.

Each is written in what `esr_trainer.shards` asks of a catalogue, so it holds for one that is shared out: sums are of
all shards, the gradient is of the items that are here, since every process sees the same loss.

Axes: B batch, M experts, N items or what stands for them, J any items.
"""

from typing import Any

import torch
from torch import Tensor

from esr_trainer.shards import WHOLE, Logits, Shards, SummedLogits, parts_of, shared_as, without

WIDEST = 600.0
"""Logits of taken items further than this below the largest count as this far: e^-600 is still a float64."""


def gather_items(logits: Logits, items: Tensor) -> Tensor:
    """Every expert's logits of some items: (B, M, N), (B, J) -> (B, M, J)."""
    if isinstance(logits, SummedLogits):
        return WHOLE.pick(logits.picked, items)
    parts = parts_of(logits)
    return parts.shards.pick(parts.here, items)


def log_softmax_of(logits: Logits, items: Tensor) -> Tensor:
    """Every expert's log softmax of some items: (B, M, N), (B, J) -> (B, M, J)."""
    if isinstance(logits, SummedLogits):
        return gather_items(logits, items) - logits.log_normaliser[:, :, None]
    parts = parts_of(logits)
    log_softmax: Tensor = _LogSoftmaxOf.apply(parts.here, items, parts.shards)  # type: ignore[no-untyped-call]
    return log_softmax


def taken_and_left(logits: Logits, taken: Tensor) -> tuple[Tensor, Tensor]:
    """The taken items' logits, and the log-normaliser of what is left when each is taken, for every expert.

    What is left at a_k is the items outside a_1..a_J, and a_k..a_J: with e = exp f, the normalisers are a cumulative
    sum from behind over [sum outside e, e(a_J), ..., e(a_1)], in float64. The gradient of the k-th by f(b) is
    exp(f(b) - normaliser_k) for the items that are left.

    Args:
        logits: (B, M, N); -inf marks an item that is not there.
        taken: (B, J), distinct items that are there.

    Returns:
        (B, M, J) each.
    """
    parts = parts_of(logits)
    both: tuple[Tensor, Tensor] = _TakenAndLeft.apply(parts.here, taken, parts.shards)  # type: ignore[no-untyped-call]
    return both


def entropy(logits: Logits, log_weight: Tensor | None = None) -> Tensor:
    """Entropy of every expert's softmax, H = -sum_a p(a) log p(a): log N when uniform, 0 when one item takes all.

    With weights it is that of the items which the columns stand for, p = w e^f / Z: H = log Z - sum_a p(a) f(a), whose
    gradient by f(a) is -p(a) (f(a) - log Z + H).

    Args:
        logits: (B, M, N).
        log_weight: log of how many items a column stands for, (B, N); None where each is one item.

    Returns:
        (B, M).
    """
    if isinstance(logits, SummedLogits):
        return logits.entropy
    parts = parts_of(logits)
    found: Tensor = _Entropy.apply(parts.here, log_weight, parts.shards)  # type: ignore[no-untyped-call]
    return found


def weighed(logits: Logits, log_weight: Tensor | None) -> Logits:
    """Logits whose exponentials are worth w e^f: (B, M, N), log w (B, N) or None for 1 -> (B, M, N)."""
    return logits if log_weight is None else shared_as(logits, parts_of(logits).here + log_weight[:, None])


class _LogSoftmaxOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, items: Tensor, shards: Shards) -> Tensor:
        largest = shards.max(logits.amax(dim=2, keepdim=True))
        weights = (logits - largest).exp_()
        (total,) = shards.sum(weights.sum(dim=2, keepdim=True))
        ctx.shards = shards
        ctx.save_for_backward(items, weights, total)
        return shards.pick(logits, items) - (largest + total.log())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        items, weights, total = ctx.saved_tensors
        (gradient,) = gradients
        everywhere = weights * (-gradient.sum(dim=2, keepdim=True) / total)
        return ctx.shards.add(everywhere, items, gradient), None, None


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, log_weight: Tensor | None, shards: Shards) -> Tensor:
        weights = logits if log_weight is None else logits + log_weight[:, None]
        largest = shards.max(weights.amax(dim=2, keepdim=True))
        lead, weights = logits - largest, (weights - largest).exp_()
        total, weighted = shards.sum(weights.sum(dim=2), torch.linalg.vecdot(weights, lead))
        mean = weighted / total
        ctx.save_for_backward(lead, weights, total, mean)
        return total.log() - mean

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        lead, weights, total, mean = ctx.saved_tensors
        (gradient,) = gradients
        return (lead - mean[:, :, None]).mul_(weights).mul_(-(gradient / total)[:, :, None]), None, None


class _TakenAndLeft(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, taken: Tensor, shards: Shards) -> tuple[Tensor, Tensor]:
        picked = shards.pick(logits, taken)
        outside = without(logits, taken, shards)
        largest_outside = shards.max(outside.amax(dim=2, keepdim=True)).clamp_(min=torch.finfo(logits.dtype).min)
        outside.sub_(largest_outside).exp_()
        largest = torch.maximum(largest_outside, picked.amax(dim=2, keepdim=True)).double()
        weights = (picked - largest).clamp_(min=-WIDEST).exp_()
        (mass_outside,) = shards.sum(outside.sum(dim=2, keepdim=True))
        rest = (largest_outside - largest).exp_() * mass_outside
        left = rest + weights.flip(2).cumsum(dim=2).flip(2)
        ctx.shards = shards
        ctx.save_for_backward(taken, outside, weights, left, largest_outside - largest)
        return picked, (largest + left.log()).to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        taken, outside, weights, left, lead = ctx.saved_tensors
        of_picked, of_left = gradients
        share = (of_left / left).cumsum(dim=2)
        everywhere = outside * (share[..., -1:] * lead.exp()).to(outside.dtype)  # 0 where an item was taken
        return ctx.shards.add(everywhere, taken, of_picked + (weights * share).to(outside.dtype)), None, None
