"""A catalogue that is shared out: each process holds a block of consecutive items and works out their logits alone.

What the estimators need of all items is reduced over the processes: sums and maxima, the top K of everybody's top K,
and single items from who has them. Noise is drawn block by block from seeds that all share, so that a run draws the
same whatever the number of processes. Columns that stand for a catalogue are reduced in the same way.

Axes: B batch, M experts, N items or columns, H of them here, J any items, K candidates, W processes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from esr_trainer.policy import gumbel, in_turn
from esr_trainer.ranks import Ranks
from esr_trainer.shards import largest

NOISE_BLOCK = 256
"""Items whose noise is drawn from one seed."""

AS_WIDE = {torch.float32: torch.int32, torch.float64: torch.int64}
"""Integers that travel as the bits of a logit."""


class Part:
    """Consecutive items of this process, and what the others answer for theirs; see `esr_trainer.shards`."""

    def __init__(self, widths: Sequence[int], ranks: Ranks) -> None:
        """Divide items by how many each process has, W."""
        self.widths, self.ranks = widths, ranks
        self.num_items = sum(widths)
        self.first = sum(widths[: ranks.index])
        self.last = self.first + widths[ranks.index]

    @property
    def num_here(self) -> int:
        """H."""
        return self.widths[self.ranks.index]

    def max(self, parts: Tensor) -> Tensor:
        """The largest over all processes."""
        return self.ranks.max(parts)

    def sum(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """The sums over all processes, in one message."""
        return self.ranks.sum(torch.stack(parts)).unbind()

    def pick(self, logits: Tensor, items: Tensor) -> Tensor:
        """Each item's logits from the process that has it; their gradient goes there."""
        is_here, index = self.place(items)
        picked = logits.gather(2, index[:, None].expand(-1, logits.shape[1], -1))
        own = picked.masked_fill(~is_here[:, None], 0.0)
        return own + (self.ranks.sum(own) - own.detach())

    def add(self, target: Tensor, items: Tensor, values: Tensor) -> Tensor:
        """Add what is of items that are here."""
        is_here, index = self.place(items)
        return target.scatter_add_(2, index[:, None].expand_as(values), values * is_here[:, None])

    def put(self, target: Tensor, items: Tensor, values: Tensor) -> Tensor:
        """Put those of the items that are here; the others behind the last one, which is cut off again."""
        is_here, index = self.place(items)
        index = index.where(is_here, self.num_here)
        padded = torch.nn.functional.pad(target, (0, 1))
        return padded.scatter_(2, index[:, None].expand_as(values), values)[..., :-1]

    def best(self, keys: Tensor, count: int) -> Tensor:
        """The best of everybody's best, in one message."""
        here = largest(keys, min(count, self.num_here))
        return self.first_of_all(keys.gather(1, here)[:, None], here[:, None], count)

    def first_of_all(self, keys: Tensor, places: Tensor, num_candidates: int) -> Tensor:
        """The candidates by every process's K best of each expert, or all that it has, in one message.

        Args:
            keys: what the items go by, (B, M, J) with J at most K.
            places: where they are here, (B, M, J).
            num_candidates: K.

        Returns:
            Items, (B, K), the same everywhere.
        """
        room = num_candidates - keys.shape[2]
        keys = torch.nn.functional.pad(keys, (0, room), value=-torch.inf)
        items = torch.nn.functional.pad(places + self.first, (0, room)).to(AS_WIDE[keys.dtype])
        both = torch.cat(self.ranks.gather(torch.stack([keys, items.view(keys.dtype)])), dim=3)
        return in_turn(both[0], both[1].contiguous().view(items.dtype).long(), num_candidates)

    def whole(self, part: Tensor) -> Tensor:
        """Everybody's items, one part after the other."""
        room = max(self.widths) - part.shape[-1]
        parts = self.ranks.gather(torch.nn.functional.pad(part, (0, room)))
        return torch.cat([one[..., :width] for one, width in zip(parts, self.widths, strict=True)], dim=-1)

    def own(self, whole: Tensor) -> Tensor:
        """The items that are here."""
        return whole[..., self.first : self.last]

    def place(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Which of some items are here, and where: of one that is not, an index of no meaning."""
        index = items - self.first
        is_here = (index >= 0) & (index < self.num_here)
        return is_here, index.where(is_here, 0)


class CatalogueShard(Part):
    """The items of this process."""

    def __init__(self, num_items: int, ranks: Ranks) -> None:
        super().__init__([len(block) for block in blocks_of(num_items, ranks.count)], ranks)

    def greedy(self, logits: Tensor, num_candidates: int) -> Tensor:
        """Expert by expert, the best items that no earlier expert took: (B, M, H) -> (B, K), the same everywhere."""
        best = logits.topk(min(num_candidates, logits.shape[2]))
        return self.first_of_all(best.values, best.indices, num_candidates)

    def gumbel(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """Noise of the items that are here, (B, M, H); of the generator only the blocks' seeds are drawn."""
        num_blocks = -(-self.num_items // NOISE_BLOCK)
        seeds = torch.randint(2**32, (num_blocks,), generator=generator, device=generator.device).tolist()
        noise = torch.empty_like(logits)
        own = torch.Generator(logits.device)
        for block in range(self.first // NOISE_BLOCK, -(-self.last // NOISE_BLOCK)):
            start = block * NOISE_BLOCK
            drawn = gumbel(torch.Size((*logits.shape[:2], NOISE_BLOCK)), logits, own.manual_seed(seeds[block]))
            low, high = max(start, self.first), min(start + NOISE_BLOCK, self.last)
            noise[..., low - self.first : high - self.first] = drawn[..., low - start : high - start]
        return noise


def blocks_of(count: int, num_processes: int) -> list[range]:
    """The rows of each process, W: as many for each, the last ones fewer; as torchrec shards a table row-wise."""
    size = -(-count // num_processes)
    return [range(min(rank * size, count), min((rank + 1) * size, count)) for rank in range(num_processes)]
