"""A tower as an ONNX file.

Axes: B batch, M experts, D embedding dimension, V vocabulary, P values of a feature.
"""

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from esr_trainer.features import Features
from esr_trainer.hashed_text import HashedText
from esr_trainer.towers import Tower


class ExportedTower(nn.Module):
    """A tower with plain tensors only: padded bags -> embeddings, so that the ONNX graph is a few gathers and sums."""

    def __init__(self, tower: Tower, scale: float = 1.0) -> None:
        super().__init__()
        self.shape = tower.shape[1:]
        self.tables = nn.ParameterList(padded(table.detach(), scale) for table in tower.weights().values())

    def forward(self, *bags: Tensor) -> Tensor:
        """One (B, P) int64 bag per feature, -1 pads -> (B, M, D): the sum of the bags' means."""
        total = torch.zeros(())
        for table, bag in zip(self.tables, bags, strict=True):
            present = bag >= 0
            pooled = table[torch.where(present, bag, len(table) - 1)].sum(dim=1)  # -1 reads the row of zeros
            total = total + pooled / present.sum(dim=1, keepdim=True).clamp(min=1)
        return total.view(-1, *self.shape)


def padded(table: Tensor, scale: float) -> Tensor:
    """A table times a number, and a row of zeros behind, with no other copy on the way: (V, W) -> (V + 1, W)."""
    rows = table.new_zeros(len(table) + 1, table.shape[1])
    torch.mul(table, scale, out=rows[:-1])
    return rows


def write_tower(path: Path, tower: ExportedTower, features: Features) -> None:
    """Write one tower as one ONNX file with a free batch axis, and a free width of the bags of text."""
    batch = torch.export.Dim("batch", min=1)
    texts = [isinstance(vocabulary, HashedText) for vocabulary in features.vocabularies.values()]
    example = tuple(
        torch.zeros(2, 2 if is_text else bags.shape[1], dtype=torch.int64)
        for is_text, bags in zip(texts, features.bags.values(), strict=True)
    )
    shapes = tuple(
        {0: batch, 1: torch.export.Dim(f"width_{index}", min=1)} if is_text else {0: batch}
        for index, is_text in enumerate(texts)
    )
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecated internals
        torch.onnx.export(
            tower.eval(),
            example,
            path,
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=list(features.bags),
            output_names=["embedding"],
            dynamic_shapes={"bags": shapes},
        )
