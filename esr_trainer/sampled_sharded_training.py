"""A large catalogue that is shared out: each process samples its own items, and together they stand for all.

As in `esr_trainer.sampled_training`, with these parts of every process:
1. Its index finds each context's head among its items, and its items run a race of their own. The first K of
   everybody's first K are the first K of all, since the noise of one item has nothing to do with another's.
2. Its head, the candidates that are its, and a tail of its own stand for its items; sums over the catalogue are sums
   over processes, each unbiased.
3. Its items' rows take a step here.

Noise and tails come from a generator of each process's own, seeded at every step from the run's, which stays the same
everywhere; so another number of processes draws otherwise, by the same law.

Axes: B batch, M experts, N items, H head, K candidates, S tail, D embedding dimension, W processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import NamedTuple, Self

import torch
from torch import Tensor

from esr_trainer.catalogue_sample import Columns, Head, columns_of, head_of, lazy_races
from esr_trainer.catalogue_shard import CatalogueShard, Part
from esr_trainer.interaction import show
from esr_trainer.lazy_rows import rows_of, table_rows
from esr_trainer.policy_value import System, replay
from esr_trainer.ranks import Ranks
from esr_trainer.sampled_training import (
    InnerProducts,
    SampledTrainer,
    copy_of,
    early_share,
    logits_of,
    nearest,
    queries_of,
)
from esr_trainer.sharded_towers import ShardedRanker, ShardedTower
from esr_trainer.sharded_training import ShardedTrainer
from esr_trainer.shards import ShardedLogits
from esr_trainer.training import Place, Played


@dataclass(kw_only=True)
class SampledShardedTrainer(ShardedTrainer, SampledTrainer):
    """A run of which every process has a block of the items, and of a step's work a share."""

    def __post_init__(self) -> None:
        """Begin with no index; items are sought where their rows are."""
        super().__post_init__()
        assert self.policy.item_tower.placement.rows == tuple(self.policy.item_tower.blocks)

    @classmethod
    def play(cls, learners: Sequence[Self]) -> Played:
        """The round of the run, over samples of everybody's items."""
        (learner,) = learners
        return learner.play_alone()

    def play_alone(self) -> Played:
        """One round."""
        config, policy = self.config, self.policy
        draws = own_generator(self.generator, policy.ranks)
        contexts = self.draw_contexts()
        queries = queries_of(partial(rows_from_all, policy.context_tower), contexts, policy.temperature)
        self.index.at_step(self.step, lambda: copy_of(policy.item_tower))
        sizes = sizes_of(config.head_size, config.catalogue_tail, policy.shard)
        with torch.no_grad():
            head = head_of(self.index.search(queries.detach(), sizes.heads[policy.ranks.index]))
            law = InnerProducts(partial(rows_of, policy.item_tower), queries)
            share = early_share(config, policy.shard.num_items)
            raced = lazy_races(law, head, policy.shard.num_here, config.candidates, share, draws)
            candidates = policy.shard.first_of_all(*raced, config.candidates)
        round_ = show(self.world, self.system, contexts, candidates, self.generator)
        columns, shards, of_candidates = shared_columns(head, candidates, sizes, policy.shard, draws)
        logits = ShardedLogits(logits_of(policy.item_tower, queries, columns), shards)
        place = Place(of_candidates.gather(1, round_.positions), of_candidates, columns.log_weight)
        return Played(contexts, logits, round_, place)

    def value(self) -> dict[str, float]:
        """The policy value on all contexts, of the exact greedy candidates."""
        values = replay(self.world, self.system, lambda contexts: best_shared(self.policy, contexts, self.system))
        return {self.criterion: float(values.mean())}

    @property
    def own_state(self) -> Mapping[str, Tensor]:
        """The baseline."""
        return self.baseline.tensors()

    @property
    def kept_alone(self) -> Mapping[str, Tensor]:
        """The index of the items that are here."""
        return {self.policy.ranks.mine(name): tensor for name, tensor in self.index.tensors().items()}

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """The baseline, and the index; where other processes wrote the checkpoint it is built anew."""
        mine = self.policy.ranks.mine("")
        own = {name.removeprefix(mine): tensor for name, tensor in state.items() if name.startswith(mine)}
        super().load_own_state({**own, **{name: state[name] for name in self.own_state}})


def own_generator(shared: torch.Generator, ranks: Ranks) -> torch.Generator:
    """A generator of this process's own; the shared one, in the same state everywhere, draws every process's seed."""
    seeds = torch.randint(2**32, (ranks.count,), generator=shared).tolist()
    return torch.Generator().manual_seed(seeds[ranks.index])


class Sizes(NamedTuple):
    """How much of its items each process samples."""

    heads: list[int]
    """H, of each of W."""
    tails: list[int]
    """S, of each of W."""


def sizes_of(head: int, tail: int, shard: CatalogueShard) -> Sizes:
    """Equal shares of the whole catalogue's head and tail, of no more items than a process has."""
    heads, tails = ([min(-(-count // len(shard.widths)), width) for width in shard.widths] for count in (head, tail))
    return Sizes(heads, tails)


def rows_from_all(tower: ShardedTower, rows: Tensor) -> Tensor:
    """Embeddings from wherever they are; the gradient reaches only the rows used: (U,) distinct -> (U, M, D)."""
    return tower.of(rows, table_rows).view(-1, *tower.shape[1:])


class SharedColumns(NamedTuple):
    """What stands for the whole catalogue, of which each process has a part."""

    here: Columns
    """For the items that are here."""
    shards: Part
    """What speaks for the other processes' columns."""
    candidates: Tensor
    """The candidates' columns among everybody's, (B, K): those of the processes that have the items."""


def shared_columns(
    head: Head, candidates: Tensor, sizes: Sizes, shard: CatalogueShard, draws: torch.Generator
) -> SharedColumns:
    """The columns of every process; each has one for every candidate, and it counts where the item is.

    Args:
        head: (B, H), of places here.
        candidates: items of all, (B, K).
        sizes: of everybody's samples.
        shard: the items that are here.
        draws: of this process's own.
    """
    is_here, places = shard.place(candidates)
    index, num_candidates = shard.ranks.index, candidates.shape[1]
    columns = columns_of(head, places.where(is_here, -1), shard.num_here, sizes.tails[index], draws)
    widths = [of_head + num_candidates + of_tail for of_head, of_tail in zip(*sizes, strict=True)]
    first = [end - width + of_head for end, width, of_head in zip(accumulate(widths), widths, sizes.heads, strict=True)]
    owner = torch.bucketize(candidates, torch.tensor([*accumulate(shard.widths)]), right=True)
    of_candidates = torch.tensor(first)[owner] + torch.arange(num_candidates)
    return SharedColumns(columns, Part(widths, shard.ranks), of_candidates)


@torch.no_grad()
def best_shared(policy: ShardedRanker, contexts: Tensor, system: System) -> Tensor:
    """The greedy candidates of some contexts, (B, K), by every process's exact search of its items."""
    queries, shard, count = policy.context_tower(contexts) / policy.temperature, policy.shard, system.num_candidates
    keys, places = nearest(queries, policy.item_tower(), min(count, shard.num_here))
    return shard.first_of_all(keys, places, count)
