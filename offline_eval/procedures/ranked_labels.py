"""Precision, recall and NDCG of ranked lists on labels of the whole catalogue.

Axes: C contexts, N items, J items of a list, best first.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

CUTS = (5, 10)
"""n of Precision@n, Recall@n and NDCG@n."""


class Ranked(NamedTuple):
    """Means over the contexts that have a positive item."""

    precision: float
    """|positives among the first n| / n."""
    recall: float
    """|positives among the first n| / |positives|."""
    ndcg: float
    """sum_j label(j) / log2(j + 1) over the first n, over its highest possible value."""


def ranked_labels(labels: Tensor, lists: Tensor, cut: int) -> Ranked:
    """How well the first items of lists match the labels.

    Args:
        labels: 0 or 1, (C, N).
        lists: distinct items, best first, (C, J) with J at least `cut`.
        cut: n.
    """
    positives = labels.sum(dim=1).double()
    has_positive = positives > 0
    hits = labels.gather(1, lists[:, :cut]).double()[has_positive]
    positives = positives[has_positive]
    discount = 1 / torch.arange(2, cut + 2, dtype=torch.float64).log2()
    ideal = discount.cumsum(dim=0)[positives.clamp(max=cut).long() - 1]
    found = hits.sum(dim=1)
    return Ranked(
        precision=float(found.mean() / cut),
        recall=float((found / positives).mean()),
        ndcg=float((hits @ discount / ideal).mean()),
    )


def by_name(labels: Tensor, lists: Tensor, cuts: Sequence[int] = CUTS) -> dict[str, float]:
    """Every measure at every cut, such as `ndcg@10`."""
    found = {cut: ranked_labels(labels, lists, cut) for cut in cuts}
    return {f"{name}@{cut}": getattr(found[cut], name) for name in Ranked._fields for cut in cuts}
