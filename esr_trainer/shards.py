"""What a formula over the catalogue asks of it: sums, maxima, and single items, wherever the items are.

DESIGN §4 is sums and top-k, and both reduce exactly: a formula that is written in these terms is the same for a
catalogue that is in one piece and for one whose items are shared out among processes (`esr_trainer.catalogue_shard`).

Axes: B batch, M experts, N items, H of them here, J any items, K candidates.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Shards(Protocol):
    """The catalogue, of which a part is here; every process asks the same in the same order, and gets the same."""

    def max(self, parts: Tensor) -> Tensor:
        """The largest over all shards of what each found in its own, element by element."""

    def sum(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """The sums over all shards, element by element; all of them have one shape."""

    def pick(self, logits: Tensor, items: Tensor) -> Tensor:
        """Every expert's logits of some items: (B, M, H), (B, J) -> (B, M, J)."""

    def add(self, target: Tensor, items: Tensor, values: Tensor) -> Tensor:
        """Add (B, M, J) to the items of `target`, (B, M, H), that are here; in place."""

    def without(self, logits: Tensor, items: Tensor) -> Tensor:
        """A copy of (B, M, H) with -inf for some items, (B, J)."""

    def whole(self, part: Tensor) -> Tensor:
        """All items of the last axis: (..., H) -> (..., N)."""

    def own(self, whole: Tensor) -> Tensor:
        """Those of them that are here: (..., N) -> (..., H)."""


class SharedOut(Shards, Protocol):
    """A catalogue, or what stands for one, of which some is elsewhere."""

    @property
    def num_items(self) -> int:
        """N."""


class SharedCatalogue(SharedOut, Protocol):
    """A catalogue whose items are elsewhere too."""

    def greedy(self, logits: Tensor, num_candidates: int) -> Tensor:
        """`esr_trainer.policy.greedy_candidates` over all shards: (B, M, H) -> (B, K)."""

    def gumbel(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """Standard Gumbel noise of the items that are here, (B, M, H); every process draws from the same state."""


class Whole:
    """All items are here."""

    def max(self, parts: Tensor) -> Tensor:
        """As it is."""
        return parts

    def sum(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """As they are."""
        return parts

    def pick(self, logits: Tensor, items: Tensor) -> Tensor:
        """By their index."""
        return logits.gather(2, index_of(logits, items))

    def add(self, target: Tensor, items: Tensor, values: Tensor) -> Tensor:
        """By their index."""
        return target.scatter_add_(2, index_of(target, items), values)

    def without(self, logits: Tensor, items: Tensor) -> Tensor:
        """By their index."""
        return logits.scatter(2, index_of(logits, items), -torch.inf)

    def whole(self, part: Tensor) -> Tensor:
        """As it is."""
        return part

    def own(self, whole: Tensor) -> Tensor:
        """As it is."""
        return whole


WHOLE = Whole()


@dataclass(frozen=True)
class ShardedLogits:
    """The logits of the items that are here; with the other processes' it stands for those of all, (B, M, N)."""

    here: Tensor
    """(B, M, H)."""
    shards: SharedOut

    def __len__(self) -> int:
        """B."""
        return len(self.here)

    @property
    def shape(self) -> torch.Size:
        """(B, M, N)."""
        return torch.Size((*self.here.shape[:2], self.shards.num_items))

    @property
    def dtype(self) -> torch.dtype:
        """Of every logit."""
        return self.here.dtype

    @property
    def device(self) -> torch.device:
        """Where those that are here are."""
        return self.here.device

    def detach(self) -> "ShardedLogits":
        """Without their history."""
        return replace(self, here=self.here.detach())


@dataclass(frozen=True)
class ShardedCatalogue(ShardedLogits):
    """The logits of all items, each of which can be a candidate."""

    shards: SharedCatalogue


Logits = Tensor | ShardedLogits
"""The catalogue's logits, (B, M, N), in one piece or shared out."""


class Parts(NamedTuple):
    """Logits that are here, and what speaks for the others."""

    here: Tensor
    """(B, M, H)."""
    shards: Shards


def parts_of(logits: Logits) -> Parts:
    """The logits that are here, and what speaks for the others."""
    return Parts(logits.here, logits.shards) if isinstance(logits, ShardedLogits) else Parts(logits, WHOLE)


def of_experts(logits: Logits, count: int) -> Logits:
    """The logits of the first experts."""
    if isinstance(logits, ShardedLogits):
        return replace(logits, here=logits.here[:, :count])
    return logits[:, :count]


def of_runs(logits: Logits, count: int) -> tuple[Logits, ...]:
    """The logits of runs side by side, run by run; where the catalogue is shared out there is one."""
    if isinstance(logits, ShardedLogits):
        assert count == 1
        return (logits,)
    return logits.chunk(count)


def in_one_piece(logits: Logits) -> Tensor:
    """The logits, where a formula needs all items at once.

    Raises:
        TypeError: they are shared out.
    """
    if isinstance(logits, ShardedLogits):
        raise TypeError("these logits are shared out among processes")
    return logits


def index_of(logits: Tensor, items: Tensor) -> Tensor:
    """Items as an index into every expert's logits: (B, M, N), (B, J) -> (B, M, J)."""
    return items[:, None].expand(-1, logits.shape[1], -1)
