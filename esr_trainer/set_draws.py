"""Draws with replacement from many softmaxes at once: inverse distribution functions by a guide table.

A binary search per draw costs a few times as much. Chen & Asau 1974 ("On generating random variates from an empirical
distribution") look the search's bounds up in a table instead: of CELLS equal parts of [0, 1), most are within an item.

Axes: B batch, N items, T sets, D draws of a set.
"""

import torch
from torch import Tensor

CELLS = 1 << 13
"""Parts of [0, 1); a power of 2, so that a number times it keeps its order."""


def draw_sets(logits: Tensor, num_sets: int, num_draws: int, generator: torch.Generator) -> Tensor:
    """Draw sets from each row's softmax, with replacement.

    Args:
        logits: (B, N).
        num_sets: T.
        num_draws: D, may be 0.
        generator: the source of every draw.

    Returns:
        Items, (B, T, D), ascending within a set, so that an item that was drawn twice stands beside itself.
    """
    uniform = sorted_uniforms((len(logits), num_sets, num_draws), generator, logits)
    return inverse(logits.softmax(dim=1), uniform.flatten(1)).view(uniform.shape)


def sorted_uniforms(shape: tuple[int, int, int], generator: torch.Generator, like: Tensor) -> Tensor:
    """D uniform draws per set in ascending order: partial sums of D + 1 exponentials, over their total."""
    *sets, num_draws = shape
    draws = torch.rand((*sets, num_draws + 1), generator=generator, dtype=like.dtype, device=like.device)
    sums = draws.neg_().log1p_().neg_().cumsum(dim=2)  # 1 - U is never 0
    return sums[..., :-1] / sums[..., -1:]


def inverse(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The first item up to which the probabilities sum to more than u.

    Args:
        probabilities: (B, N), rows sum to 1.
        uniform: u, (B, J) in [0, 1].

    Returns:
        (B, J).
    """
    batch, num_items = probabilities.shape
    reached = probabilities.cumsum(dim=1)
    reached /= reached[:, -1:].clone()
    uniform = uniform.clamp(max=1 - torch.finfo(uniform.dtype).eps / 2)
    cells = (reached * CELLS).to(torch.int64).add_(1)
    ones = torch.ones((), dtype=torch.int32, device=cells.device).expand(cells.shape)
    guide = torch.zeros((batch, CELLS + 2), dtype=torch.int32, device=cells.device).scatter_add_(1, cells, ones)
    guide = guide.cumsum(dim=1, dtype=torch.int32)  # how many items are reached before a cell begins
    cell = (uniform * CELLS).to(torch.int64)
    low = guide.gather(1, cell)
    width = guide.gather(1, cell.add_(1)).sub_(low)
    unsettled = width.flatten().nonzero()[:, 0]
    row = unsettled.to(torch.int32).div_(uniform.shape[1], rounding_mode="trunc").mul_(num_items)
    found = low.flatten().index_select(0, unsettled)
    found += row
    advance(
        reached.flatten(),
        uniform.flatten().index_select(0, unsettled),
        found,
        width.flatten().index_select(0, unsettled),
    )
    low.view(-1).index_copy_(0, unsettled, found.sub_(row))
    return low.long()


def advance(reached: Tensor, uniform: Tensor, index: Tensor, width: Tensor) -> None:
    """Move each index to the first one, at most its width further, where `reached` is above u; each (J,) but `reached`.

    The bisection without branches: half of the width that is left is skipped where its last number is not above u.
    """
    for _ in range(int(width.max()).bit_length() if len(width) else 0):
        half = (width + 1) >> 1
        is_below = reached.index_select(0, (index + half).sub_(1).clamp_(min=0)) <= uniform
        is_below &= width > 0
        skipped = half * is_below
        index += skipped
        width = torch.where(is_below, width - half, (half - 1).clamp_(min=0))
