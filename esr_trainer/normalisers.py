"""Log-normalisers over a catalogue with closed-form gradients: one pass over (B, M, N) forward and one backward.

Autograd's own gradients of gather, scatter and logsumexp would each fill and add an array of the size of the logits.

Axes: B batch, M experts, N items or what stands for them, J any items.
"""

from typing import Any

import torch
from torch import Tensor

WIDEST = 600.0
"""Logits of taken items further than this below the largest count as this far: e^-600 is still a float64."""


def gather_items(logits: Tensor, items: Tensor) -> Tensor:
    """Every expert's logits of some items: (B, M, N), (B, J) -> (B, M, J)."""
    return logits.gather(2, index_of(logits, items))


def log_softmax_of(logits: Tensor, items: Tensor) -> Tensor:
    """Every expert's log softmax of some items: (B, M, N), (B, J) -> (B, M, J)."""
    log_softmax: Tensor = _LogSoftmaxOf.apply(logits, items)  # type: ignore[no-untyped-call]
    return log_softmax


def taken_and_left(logits: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
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
    both: tuple[Tensor, Tensor] = _TakenAndLeft.apply(logits, taken)  # type: ignore[no-untyped-call]
    return both


def entropy(logits: Tensor, log_weight: Tensor | None = None) -> Tensor:
    """Entropy of every expert's softmax, H = -sum_a p(a) log p(a): log N when uniform, 0 when one item takes all.

    Its gradient by f(a) is -p(a) (log p(a) + H). With weights H = log Z - sum_a w(a) e^f(a) f(a) / Z.

    Args:
        logits: (B, M, N).
        log_weight: log of how many items a column stands for, (B, N); None where each is one item.

    Returns:
        (B, M).
    """
    if log_weight is not None:
        share = weighed(logits, log_weight)
        mean: Tensor = torch.linalg.vecdot(share.softmax(dim=2), logits)
        return share.logsumexp(dim=2) - mean
    found: Tensor = _Entropy.apply(logits)  # type: ignore[no-untyped-call]
    return found


def weighed(logits: Tensor, log_weight: Tensor | None) -> Tensor:
    """Logits whose exponentials are worth w e^f: (B, M, N), log w (B, N) or None for 1 -> (B, M, N)."""
    return logits if log_weight is None else logits + log_weight[:, None]


def index_of(logits: Tensor, items: Tensor) -> Tensor:
    """Items as an index into every expert's logits: (B, M, N), (B, J) -> (B, M, J)."""
    return items[:, None].expand(-1, logits.shape[1], -1)


class _LogSoftmaxOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, items: Tensor) -> Tensor:
        index = index_of(logits, items)
        largest = logits.amax(dim=2, keepdim=True)
        weights = (logits - largest).exp_()
        total = weights.sum(dim=2, keepdim=True)
        ctx.save_for_backward(index, weights, total)
        return logits.gather(2, index) - (largest + total.log())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        index, weights, total = ctx.saved_tensors
        (gradient,) = gradients
        everywhere = weights * (-gradient.sum(dim=2, keepdim=True) / total)
        return everywhere.scatter_add_(2, index, gradient), None


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        lead = logits - logits.amax(dim=2, keepdim=True)
        weights = lead.exp()
        total = weights.sum(dim=2)
        mean: Tensor = torch.linalg.vecdot(weights, lead) / total
        ctx.save_for_backward(lead, weights, total, mean)
        return total.log() - mean

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        lead, weights, total, mean = ctx.saved_tensors
        (gradient,) = gradients
        result: Tensor = (lead - mean[:, :, None]).mul_(weights).mul_(-(gradient / total)[:, :, None])
        return result


class _TakenAndLeft(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
        index = index_of(logits, taken)
        picked = logits.gather(2, index)
        outside = logits.scatter(2, index, -torch.inf)
        largest_outside = outside.amax(dim=2, keepdim=True).clamp_(min=torch.finfo(logits.dtype).min)
        outside.sub_(largest_outside).exp_()
        largest = torch.maximum(largest_outside, picked.amax(dim=2, keepdim=True)).double()
        weights = (picked - largest).clamp_(min=-WIDEST).exp_()
        rest = (largest_outside - largest).exp_() * outside.sum(dim=2, keepdim=True)
        left = rest + weights.flip(2).cumsum(dim=2).flip(2)
        ctx.save_for_backward(index, outside, weights, left, largest_outside - largest)
        return picked, (largest + left.log()).to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        index, outside, weights, left, lead = ctx.saved_tensors
        of_picked, of_left = gradients
        share = (of_left / left).cumsum(dim=2)
        everywhere = outside * (share[..., -1:] * lead.exp()).to(outside.dtype)
        return everywhere.scatter_(2, index, of_picked + (weights * share).to(outside.dtype)), None
