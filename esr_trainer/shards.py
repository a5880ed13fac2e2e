"""What a formula over the catalogue asks of it: sums, maxima, and single items, wherever the items are.

DESIGN §4 is sums and top-k, and both reduce exactly: a formula that is written in these terms is the same for a
catalogue that is in one piece and for one whose items are shared out among processes (`esr_trainer.catalogue_shard`).

Axes: B batch, M experts, N items, H of them here, J any items, K candidates.
"""

from collections.abc import Callable, Sequence
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

    def put(self, target: Tensor, items: Tensor, values: Tensor) -> Tensor:
        """A copy of `target`, (B, M, H), with other values of the items that are here: (B, J), (B, M, J)."""

    def best(self, keys: Tensor, count: int) -> Tensor:
        """The items with the largest keys, falling, of equal keys the first item's: (B, H) -> (B, J)."""

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

    def put(self, target: Tensor, items: Tensor, values: Tensor) -> Tensor:
        """By their index."""
        return target.scatter(2, index_of(target, items), values)

    def best(self, keys: Tensor, count: int) -> Tensor:
        """By their index."""
        return largest(keys, count)

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


@dataclass(frozen=True)
class SummedLogits:
    """What is left of logits, (B, M, N), that were never stored: sums over all items, and the logits of J columns.

    The items that a formula names are columns. What needs more of the catalogue than is here has no form for it.
    """

    num_items: int
    """N."""
    picked: Tensor
    """The columns' logits, (B, M, J)."""
    log_normaliser: Tensor
    """log sum_a e^f(a), (B, M)."""
    entropy: Tensor
    """Of every expert's softmax, (B, M)."""
    log_times: Tensor
    """log tau of the experts that own a position (`esr_trainer.inclusion`), (B, min(M, K)) float64; or (B, 0)."""

    def __len__(self) -> int:
        """B."""
        return len(self.picked)

    @property
    def shape(self) -> torch.Size:
        """(B, M, N)."""
        return torch.Size((*self.picked.shape[:2], self.num_items))

    @property
    def dtype(self) -> torch.dtype:
        """Of every logit."""
        return self.picked.dtype

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.picked.device

    @property
    def values(self) -> tuple[Tensor, ...]:
        """All that is here."""
        return self.picked, self.log_normaliser, self.entropy, self.log_times

    def each(self, change: Callable[[Tensor], Tensor]) -> "SummedLogits":
        """The same change of all that is here."""
        return SummedLogits(self.num_items, *map(change, self.values))

    def detach(self) -> "SummedLogits":
        """Without their history."""
        return self.each(torch.Tensor.detach)


Logits = Tensor | ShardedLogits | SummedLogits
"""The catalogue's logits, (B, M, N), in one piece or shared out, or what is left of them."""


class Parts(NamedTuple):
    """Logits that are here, and what speaks for the others."""

    here: Tensor
    """(B, M, H)."""
    shards: Shards


def parts_of(logits: Logits) -> Parts:
    """The logits that are here, and what speaks for the others.

    Raises:
        TypeError: they were never stored.
    """
    if isinstance(logits, SummedLogits):
        raise TypeError("these logits were never stored")
    return Parts(logits.here, logits.shards) if isinstance(logits, ShardedLogits) else Parts(logits, WHOLE)


def shared_as(logits: Logits, here: Tensor) -> Logits:
    """Other logits of items that are shared out as these are: what is here of them, (B, M, H)."""
    return replace(logits, here=here) if isinstance(logits, ShardedLogits) else here


def of_experts(logits: Logits, count: int) -> Logits:
    """The logits of the first experts."""
    if isinstance(logits, SummedLogits):
        return logits.each(lambda values: values[:, :count])
    return shared_as(logits, parts_of(logits).here[:, :count])


def of_runs(logits: Logits, count: int) -> tuple[Logits, ...]:
    """The logits of runs side by side, run by run; where the catalogue is shared out there is one."""
    if isinstance(logits, ShardedLogits):
        assert count == 1
        return (logits,)
    if isinstance(logits, SummedLogits):
        parts = zip(*(values.chunk(count) for values in logits.values), strict=True)
        return tuple(SummedLogits(logits.num_items, *part) for part in parts)
    return logits.chunk(count)


def together(runs: Sequence[Logits]) -> Logits:
    """The logits of runs side by side, from each one's; shared out ones are of one run."""
    first = runs[0]
    if len(runs) == 1:
        return first
    if isinstance(first, SummedLogits):
        parts = zip(*(run.values for run in runs if isinstance(run, SummedLogits)), strict=True)
        return SummedLogits(first.num_items, *map(torch.cat, parts))
    return torch.cat([in_one_piece(logits) for logits in runs])


def in_one_piece(logits: Logits) -> Tensor:
    """The logits, where a formula needs all items at once.

    Raises:
        TypeError: they are shared out, or were never stored.
    """
    if isinstance(logits, ShardedLogits):
        raise TypeError("these logits are shared out among processes")
    return parts_of(logits).here


def without(logits: Tensor, items: Tensor, shards: Shards) -> Tensor:
    """A copy of (B, M, H) with -inf for some items, (B, J)."""
    return shards.put(logits, items, logits.new_full((), -torch.inf).expand(*logits.shape[:2], items.shape[1]))


def largest(keys: Tensor, count: int) -> Tensor:
    """Where the largest keys are, falling, of equal keys the first: (B, H) -> (B, J).

    `topk` promises nothing of equal keys, and which of them comes first is another thing in a part than in the whole.
    """
    values, places = keys.topk(min(count + 1, keys.shape[1]))
    is_equal = values[:, 1:] == values[:, :-1]
    if is_equal.any():
        unclear = is_equal.any(dim=1)
        places[unclear] = keys[unclear].sort(dim=1, descending=True, stable=True).indices[:, : places.shape[1]]
    return places[:, :count]


def index_of(logits: Tensor, items: Tensor) -> Tensor:
    """Items as an index into every expert's logits: (B, M, N), (B, J) -> (B, M, J)."""
    return items[:, None].expand(-1, logits.shape[1], -1)
