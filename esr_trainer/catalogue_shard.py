"""A catalogue that is shared out: each process holds a block of consecutive items and works out their logits alone.

What the estimators need of all items is reduced over the processes: sums and maxima, the top K of everybody's top K,
and single items from who has them. Noise is drawn block by block from seeds that all share, so that a run draws the
same whatever the number of processes.

Axes: B batch, M experts, N items, H of them here, J any items, K candidates, W processes.
"""

import torch
from torch import Tensor

from esr_trainer.policy import gumbel
from esr_trainer.quotas import quotas
from esr_trainer.ranks import Ranks

NOISE_BLOCK = 256
"""Items whose noise is drawn from one seed."""

AS_WIDE = {torch.float32: torch.int32, torch.float64: torch.int64}
"""Integers that travel as the bits of a logit."""


class CatalogueShard:
    """The items of this process, and what the others answer for theirs; see `esr_trainer.shards`."""

    def __init__(self, num_items: int, ranks: Ranks) -> None:
        self.num_items = num_items
        self.ranks = ranks
        self.blocks = blocks_of(num_items, ranks.count)
        self.first, self.last = self.blocks[ranks.index].start, self.blocks[ranks.index].stop

    def max(self, parts: Tensor) -> Tensor:
        """The largest over all processes."""
        return self.ranks.max(parts)

    def sum(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """The sums over all processes, in one message."""
        return self.ranks.sum(torch.stack(parts)).unbind()

    def pick(self, logits: Tensor, items: Tensor) -> Tensor:
        """Each item's logits from the process that has it; their gradient goes there."""
        is_here, index = self.place(items)
        own = logits.gather(2, index[:, None].expand(-1, logits.shape[1], -1)) * is_here[:, None]
        return own + (self.ranks.sum(own) - own.detach())

    def add(self, target: Tensor, items: Tensor, values: Tensor) -> Tensor:
        """Add what is of items that are here."""
        is_here, index = self.place(items)
        return target.scatter_add_(2, index[:, None].expand_as(values), values * is_here[:, None])

    def without(self, logits: Tensor, items: Tensor) -> Tensor:
        """-inf for those of the items that are here."""
        is_here, index = self.place(items)
        is_gone = torch.zeros((len(logits), logits.shape[2]), dtype=torch.int8, device=logits.device)
        is_gone.scatter_add_(1, index, is_here.to(torch.int8))
        return logits.masked_fill(is_gone[:, None] > 0, -torch.inf)

    def whole(self, part: Tensor) -> Tensor:
        """Everybody's items, one block after the other."""
        room = len(self.blocks[0]) - part.shape[-1]
        parts = self.ranks.gather(torch.nn.functional.pad(part, (0, room)))
        return torch.cat(parts, dim=-1)[..., : self.num_items]

    def own(self, whole: Tensor) -> Tensor:
        """The items that are here."""
        return whole[..., self.first : self.last]

    def place(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Which of some items are here, and where: of one that is not, an index of no meaning."""
        index = items - self.first
        is_here = (index >= 0) & (index < self.last - self.first)
        return is_here, index.where(is_here, 0)

    def greedy(self, logits: Tensor, num_candidates: int) -> Tensor:
        """Expert by expert, the best items that no earlier expert took: (B, M, H) -> (B, K), the same everywhere.

        Whatever earlier experts took, an expert's picks are among its K best of all, so among its K best here.
        """
        keys, items = self.best(logits, num_candidates)
        picks = items.new_empty((len(items), 0))
        for expert, quota in enumerate(quotas(num_candidates, logits.shape[1])):
            is_taken = (items[:, expert, :, None] == picks[:, None]).any(dim=2)
            place = keys[:, expert].masked_fill(is_taken, -torch.inf).topk(quota).indices
            picks = torch.cat([picks, items[:, expert].gather(1, place)], dim=1)
        return picks

    def best(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Every expert's best items of each process: (B, M, H) -> keys and items, (B, M, W * count) each."""
        here = logits.topk(min(count, logits.shape[2]))
        room = min(count, len(self.blocks[0])) - here.values.shape[2]
        keys = torch.nn.functional.pad(here.values, (0, room), value=-torch.inf)
        items = torch.nn.functional.pad(here.indices + self.first, (0, room)).to(AS_WIDE[keys.dtype])
        both = torch.cat(self.ranks.gather(torch.stack([keys, items.view(keys.dtype)])), dim=3)  # in one message
        return both[0], both[1].contiguous().view(items.dtype).long()

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
