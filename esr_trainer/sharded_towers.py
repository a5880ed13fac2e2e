"""Towers whose id tables are shared out among processes, and logits of the items that are here.

Every process knows the whole batch's contexts; who has a context's row sends it to all. Of the items each has a block,
whose rows it holds or is sent, and works out their logits alone.

Axes: B batch, C rows of a tower, M experts, N items, H of them here, D embedding dimension, W processes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from esr_trainer.catalogue_shard import CatalogueShard, blocks_of
from esr_trainer.config import TrainConfig
from esr_trainer.features import ID, Features
from esr_trainer.placement import Placement, Sizes, place_tables
from esr_trainer.ranks import Ranks
from esr_trainer.shards import ShardedCatalogue
from esr_trainer.towers import EarlyStageRanker, Tower, logits_side_by_side, numbers_of

CHUNK = 1 << 14
"""Rows of a table that are drawn at a time: a multiple of 16, so that the draws are those of the table in one piece."""


Read = Callable[[Tensor, Tensor], Tensor]
"""Some rows of a table: (V, M * D), (U,) -> (U, M * D)."""


def rows_in(table: Tensor, rows: Tensor) -> Tensor:
    """Some rows, whose gradient is a table."""
    return table.index_select(0, rows)


class ShardedTower(Tower):
    """A tower of ids alone, with the rows of its table that are placed here."""

    def __init__(
        self, features: Features, num_experts: int, dimension: int, placement: Placement, ranks: Ranks
    ) -> None:
        self.placement, self.ranks = placement, ranks
        self.rows = placement.rows[ranks.index]
        super().__init__(features, num_experts, dimension, num_ids=max(1, len(self.rows)))
        if not self.rows:  # torchrec has no empty table
            bag = self.tables.embedding_bags["feature_0"]
            bag.weight = nn.Parameter(bag.weight[:0].detach())
        self.blocks = blocks_of(len(features.ids), ranks.count)
        if placement.is_replicated:
            table = self.table
            assert isinstance(table, nn.Parameter)
            table.register_post_accumulate_grad_hook(self.add_up_gradient)  # type: ignore[no-untyped-call]

    @property
    def table(self) -> Tensor:
        """The rows that are here, (rows, M * D)."""
        return self.weights()[ID]

    def add_up_gradient(self, table: Tensor) -> None:
        """The gradient of a table that all have: each finds the part of its own items."""
        assert table.grad is not None
        table.grad.copy_(self.ranks.sum(table.grad))

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """Embeddings of some rows, the same everywhere, (B,) -> (B, M, D); or of the block that is here, (H, M, D)."""
        return (self.block() if rows is None else self.of(rows)).view(-1, *self.shape[1:])

    def of(self, rows: Tensor, read: Read = rows_in) -> Tensor:
        """Table rows from wherever they are, where `read` reads those that are here: (B,) -> (B, M * D)."""
        if self.placement.is_replicated:
            return read(self.table, rows)
        index = rows - self.rows.start
        is_here = (index >= 0) & (index < len(self.rows))
        here = torch.zeros((len(rows), self.table.shape[1]), dtype=self.table.dtype, device=rows.device)
        here = here.index_copy(0, is_here.nonzero()[:, 0], read(self.table, index[is_here]))
        summed: Tensor = _Sum.apply(here, self.ranks)  # type: ignore[no-untyped-call]
        return summed

    def block(self) -> Tensor:
        """The table rows of the block that is here, (H, M * D)."""
        block, ranks = self.blocks[self.ranks.index], self.ranks
        if self.placement.is_replicated:
            return self.table[block.start : block.stop]
        if self.placement.rows == tuple(self.blocks):
            return self.table
        sent = [overlap(self.rows, other) for other in self.blocks]
        received = [overlap(rows, block) for rows in self.placement.rows]
        moved: Tensor = _Exchange.apply(self.table, sent, received, ranks)  # type: ignore[no-untyped-call]
        return moved

    @torch.no_grad()
    def draw(self, std: float, generator: torch.Generator) -> None:
        """Draw the whole table from N(0, std^2), some rows at a time, and keep what is here."""
        num_rows = len(self.features.ids)
        starts = list(range(0, max(num_rows - CHUNK // 2, 1), CHUNK))  # the last is none of a few numbers
        for start, stop in zip(starts, [*starts[1:], num_rows], strict=True):
            drawn = self.table.new_empty((stop - start, self.table.shape[1])).normal_(0, std, generator=generator)
            low, high = max(start, self.rows.start), min(stop, self.rows.stop)
            if low < high:
                self.table[low - self.rows.start : high - self.rows.start] = drawn[low - start : high - start]


class ShardedRanker(EarlyStageRanker):
    """The two-tower mixture over a catalogue that is shared out; its parameters are the rows that are here."""

    def __init__(
        self, contexts: Features, items: Features, config: TrainConfig, places: Mapping[str, Placement], ranks: Ranks
    ) -> None:
        nn.Module.__init__(self)
        shape = (config.experts, config.embedding_dim)
        self.context_tower: ShardedTower = ShardedTower(contexts, *shape, places["context_tower"], ranks)
        self.item_tower: ShardedTower = ShardedTower(items, *shape, places["item_tower"], ranks)
        self.temperature = config.temperature
        self.places, self.ranks = places, ranks
        self.shard = CatalogueShard(len(items.ids), ranks)

    def initialise(self, std: float, generator: torch.Generator) -> None:
        """Draw both tables as one process would."""
        self.context_tower.draw(std, generator)
        self.item_tower.draw(std, generator)

    def forward(self, contexts: Tensor) -> ShardedCatalogue:  # type: ignore[override]  # what has it asks `shards` for all
        """Logits of the items that are here, for rows that are the same everywhere: (B,)."""
        return ShardedCatalogue(logits_side_by_side([self], [contexts]), self.shard)

    def gradient_norm(self) -> float:
        """Euclidean norm over all rows of both tables."""
        squares = torch.zeros((), device=self.ranks.device)
        for name, table in self.named_parameters():
            is_counted_here = self.ranks.is_first or not self.places[name.partition(".")[0]].is_replicated
            if table.grad is not None and is_counted_here:
                squares = squares + numbers_of(table.grad).square().sum()
        return float(self.ranks.sum(squares).sqrt())


def place(
    contexts: Features, items: Features, config: TrainConfig, sharding: str, ranks: Ranks
) -> dict[str, Placement]:
    """Where the first process plans to put the rows of both towers, by tower.

    Raises:
        UsageError: no plan fits into the memory.
    """
    sizes = Sizes(len(contexts.ids), len(items.ids), config.experts * config.embedding_dim, config.batch)
    return ranks.told(lambda: place_tables(sharding, sizes, ranks.count, ranks.device.type))


def overlap(one: range, other: range) -> int:
    """How many rows two ranges share."""
    return max(0, min(one.stop, other.stop) - max(one.start, other.start))


class _Sum(torch.autograd.Function):
    """The sum of everybody's part; each finds a part of its gradient, so that is summed too."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.sum(part)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.sum(gradients[0]), None


class _Exchange(torch.autograd.Function):
    """Rows to whose block they are in; their gradients go back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], ranks: Ranks) -> Tensor:
        ctx.plan = (received, sent, ranks)
        return ranks.exchange(rows, sent, received)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        sent, received, ranks = ctx.plan
        return ranks.exchange(gradients[0], sent, received), None, None, None
