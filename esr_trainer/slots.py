"""SLOT_WEIGHTS: how much a slot of the slate counts. Axis: L slots."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

SLOT_WEIGHTS: Mapping[str, Callable[[int], Tensor]] = {
    "sum": torch.ones,
    "mean": lambda num_slots: torch.full((num_slots,), 1 / num_slots),
    "dcg": lambda num_slots: 1 / torch.log2(torch.arange(num_slots) + 2.0),
}
"""Name -> number of slots -> weights, (L,): 1, 1 / L, or 1 / log2(l + 1) with l from 1."""
