"""The ESR's model: two towers per expert on torchrec's EmbeddingBagCollection, and their inner product.

f^m(x, a) = <u^m(x), v^m(a)> / temperature. Axes: B batch, C rows of a tower, M experts, N items, D embedding dimension,
V vocabulary, E an encoder's dimension.
"""

import logging
import warnings
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from esr_trainer.features import ID, Features
from esr_trainer.hashed_text import HashedText
from esr_trainer.vocabularies import EncodedText

logging.getLogger("torch.fx._symbolic_trace").setLevel(
    logging.ERROR
)  # torchrec's import warns of torch's own internals
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # fbgemm's import warns of its own internals
    from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
    from torchrec.modules.embedding_modules import EmbeddingBagCollection
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


class EncodedTable(nn.Module):
    """The table of a feature that an encoder reads: its vectors, which stay, by a projection, which learns."""

    vectors: Tensor
    """(V, E)."""

    def __init__(self, vectors: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors, persistent=False)  # kept with the features
        self.projection = nn.Parameter(torch.empty(vectors.shape[1], width))

    @property
    def weight(self) -> Tensor:
        """(V, M * D)."""
        return self.vectors @ self.projection

    def forward(self, bag: Tensor) -> Tensor:
        """The rows of bags of at most one, (B, 1): (B, M * D), 0 where there is none."""
        return (self.vectors[bag[:, 0].clamp(min=0)] * (bag >= 0)) @ self.projection


class Tower(nn.Module):
    """Rows -> embeddings: the sum, over the features, of the mean of a bag's table rows.

    One table per feature holds all experts side by side, so a lookup serves every expert.

    Args:
        features: of every row.
        num_experts: M.
        dimension: D.
        num_ids: rows of the id's table that are here; None for all.
    """

    def __init__(self, features: Features, num_experts: int, dimension: int, num_ids: int | None = None) -> None:
        super().__init__()
        self.features = features
        self.shape = (len(features.bags) - len(features.encoded), num_experts, dimension)
        self.tables = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=f"feature_{index}",  # a column may be called what a module or a table may not
                    feature_names=[name],
                    num_embeddings=len(vocabulary) if num_ids is None or name != ID else num_ids,
                    embedding_dim=num_experts * dimension,
                    pooling=PoolingType.MEAN,
                )
                for index, (name, vocabulary) in enumerate(features.vocabularies.items())
                if name not in features.encoded
            ]
        )
        self.encoded = nn.ModuleDict(
            {
                f"feature_{index}": EncodedTable(torch.from_numpy(features.encoded[name]), num_experts * dimension)
                for index, name in enumerate(features.bags)
                if name in features.encoded
            }
        )

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """Embeddings of some rows, or of all: (B,) -> (B, M, D).

        With ids alone a row's embedding is its table row: it is read directly, since the collection's bookkeeping would
        cost as much as the rest of a step.
        """
        if list(self.features.bags) == [ID]:
            table = self.weights()[ID]
            return (table if rows is None else table.index_select(0, rows)).view(-1, *self.shape[1:])
        pooled: Tensor = self.tables(self._every_bag if rows is None else jagged(self.features, rows)).values()
        total = pooled.view(-1, *self.shape).sum(dim=1)
        for index, bags in enumerate(self.features.bags.values()):
            if f"feature_{index}" in self.encoded:
                bag = torch.from_numpy(bags)
                total = total + self.encoded[f"feature_{index}"](bag if rows is None else bag[rows]).view_as(total)
        return total

    @cached_property
    def _every_bag(self) -> KeyedJaggedTensor:
        """The bags of all rows, which never change: with text, finding what is padding costs as much as pooling."""
        return jagged(self.features, torch.arange(len(self.features.bags[ID])))

    def clear_unused_buckets(self) -> None:
        """Set to 0 what a text's table holds of buckets that no row has."""
        for name, table in self.weights().items():
            if isinstance(self.features.vocabularies[name], HashedText):
                unused = np.setdiff1d(np.arange(len(table)), self.features.bags[name])
                table[torch.from_numpy(unused)] = 0.0

    def weights(self) -> dict[str, Tensor]:
        """Each feature's table, (V, M * D)."""
        tables = {**self.tables.embedding_bags, **self.encoded}
        return {name: tables[f"feature_{index}"].weight for index, name in enumerate(self.features.bags)}


class EarlyStageRanker(nn.Module):
    """The two-tower mixture of experts over a fixed catalogue."""

    def __init__(
        self, contexts: Features, items: Features, num_experts: int, dimension: int, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.context_tower = Tower(contexts, num_experts, dimension)
        self.item_tower = Tower(items, num_experts, dimension)
        self.temperature = temperature

    def initialise(self, std: float, generator: torch.Generator) -> None:
        """Draw every table from N(0, std^2); a bucket of text that no row has is 0, since nothing is learned of it."""
        with torch.no_grad():
            for table in self.parameters():
                table.normal_(0, std, generator=generator)
            for tower in (self.context_tower, self.item_tower):
                tower.clear_unused_buckets()

    def learned(self) -> dict[str, nn.Parameter]:
        """The tables that learn, by name: all, unless a tower was fixed."""
        return {name: table for name, table in self.named_parameters() if table.requires_grad}

    def gradient_norm(self) -> float:
        """Euclidean norm of the gradient over all tables."""
        gradients = [numbers_of(table.grad) for table in self.parameters() if table.grad is not None]
        return float(torch.stack([torch.linalg.vector_norm(numbers) for numbers in gradients]).norm())

    def forward(self, contexts: Tensor) -> Tensor:
        """Logits of the whole catalogue: rows (B,) -> (B, M, N)."""
        return logits_side_by_side([self], [contexts])


def numbers_of(gradient: Tensor) -> Tensor:
    """What a gradient holds, those of no rows left out."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def logits_side_by_side(rankers: Sequence[EarlyStageRanker], contexts: Sequence[Tensor]) -> Tensor:
    """Logits of R rankers of the same shape, each for contexts of its own, by one batched product.

    Args:
        rankers: R of them.
        contexts: rows of each, R times (B,).

    Returns:
        (R * B, M, N), ranker by ranker.
    """
    context = torch.stack(
        [
            ranker.context_tower(rows).transpose(0, 1) / ranker.temperature
            for ranker, rows in zip(rankers, contexts, strict=True)
        ],
        dim=1,
    )  # (M, R, B, D)
    # copied by the stack, so that the backward products read it twice as fast
    item = torch.stack([ranker.item_tower().permute(1, 2, 0) for ranker in rankers], dim=1)  # (M, R, D, N)
    product = torch.bmm(context.flatten(0, 1), item.flatten(0, 1))  # (M * R, B, N)
    return product.view(len(context), -1, product.shape[2]).transpose(0, 1)


def jagged(features: Features, rows: Tensor) -> KeyedJaggedTensor:
    """The bags of some rows in torchrec's form: values of every feature one after the other, without the padding; of
    those that have a table."""
    values, lengths = [], []
    names = [name for name, one in features.vocabularies.items() if not isinstance(one, EncodedText)]
    for name in names:
        bag = torch.from_numpy(features.bags[name]).to(rows.device)[rows]
        present = bag >= 0
        values.append(bag[present])
        lengths.append(present.sum(dim=1))
    return KeyedJaggedTensor(keys=names, values=torch.cat(values), lengths=torch.cat(lengths))
