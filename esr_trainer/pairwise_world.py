"""A world too large for matrices: what an item brings in a context is worked out when it is asked for.

Axes: C contexts, N items, B batch, J items per context.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from esr_trainer.catalogue_sample import head_of
from esr_trainer.world import World, check_size

CONTEXTS, ITEMS = 256, 1 << 16
"""Contexts and items whose rewards are held at once where all are gone through: 64 MB."""


class Law(Protocol):
    """What decides the users; items are each context's own, (B, J), or the same for all, (J,)."""

    def scores(self, contexts: Tensor, items: Tensor) -> Tensor:
        """What a late-stage ranker ranks by, (B, J)."""

    def expected_rewards(self, contexts: Tensor, items: Tensor) -> Tensor:
        """(B, J), at least 0."""

    def reward_stds(self, contexts: Tensor, items: Tensor) -> Tensor:
        """(B, J), at least 0."""


class PairwiseWorld(World):
    """A world by its law; its matrices are made only where they are small enough."""

    def __init__(self, environment: str, description: str, shape: tuple[int, int], law: Law, source: str) -> None:
        """Keep the law of (C, N) contexts and items, whose ids are their rows' numbers."""
        context_ids, item_ids = (tuple(map(str, range(count))) for count in shape)
        own = {"environment": environment, "description": description, "source": source, "law": law}
        for name, value in {**own, "context_ids": context_ids, "item_ids": item_ids}.items():
            object.__setattr__(self, name, value)  # frozen

    law: Law

    @property
    def device(self) -> torch.device:
        """The processor's memory."""
        return torch.device("cpu")

    def to(self, device: str) -> World:
        """Itself, if that is where it is.

        Raises:
            UsageError: it is to be elsewhere and too large for matrices.
        """
        return self if device == "cpu" else self.dense().to(device)

    def dense(self) -> World:
        """The same world by its matrices.

        Raises:
            UsageError: they would be too large.
        """
        return World(
            self.environment, self.description, self.context_ids, self.item_ids, self.score, self.expected_reward,
            self.reward_std, self.source,
        )  # fmt: skip

    def matrix(self, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """A law's numbers of all pairs, (C, N).

        Raises:
            UsageError: they are too many.
        """
        check_size(self.num_contexts, self.num_items)
        return of(torch.arange(self.num_contexts), torch.arange(self.num_items))

    @property
    def score(self) -> Tensor:
        """(C, N)."""
        return self.matrix(self.law.scores)

    @property
    def expected_reward(self) -> Tensor:
        """(C, N)."""
        return self.matrix(self.law.expected_rewards)

    @property
    def reward_std(self) -> Tensor:
        """(C, N)."""
        return self.matrix(self.law.reward_stds)

    def scores(self, contexts: Tensor, items: Tensor) -> Tensor:
        """The score of some items: (B,), (B, J) -> (B, J)."""
        return self.law.scores(contexts, items)

    def expected_rewards(self, contexts: Tensor, items: Tensor) -> Tensor:
        """The expected reward of some items: (B,), (B, J) -> (B, J)."""
        return self.law.expected_rewards(contexts, items)

    def reward_stds(self, contexts: Tensor, items: Tensor) -> Tensor:
        """The standard deviation of some items' rewards: (B,), (B, J) -> (B, J)."""
        return self.law.reward_stds(contexts, items)

    def blocks(self) -> Iterator[tuple[Tensor, Iterator[tuple[Tensor, Tensor]]]]:
        """Some contexts, (B,), and for them some items, (J,), after others with their expected rewards, (B, J)."""
        for contexts in rows_of(self.num_contexts, CONTEXTS):
            of_items = rows_of(self.num_items, ITEMS)
            yield contexts, ((items, self.law.expected_rewards(contexts, items)) for items in of_items)

    def best_rewards(self, count: int) -> Tensor:
        """The largest expected rewards of every context, best first, (C, count)."""
        found = []
        for contexts, parts in self.blocks():
            best = torch.empty(len(contexts), 0)
            for _, rewards in parts:
                kept = torch.cat([best, rewards.topk(min(count, rewards.shape[1])).values], dim=1)
                best = kept.topk(min(count, kept.shape[1])).values
            found.append(best)
        return torch.cat(found)

    def mean_rewards(self) -> Tensor:
        """Every item's expected reward, mean over contexts, (N,)."""
        total = torch.zeros(self.num_items, dtype=torch.float64)
        for _, parts in self.blocks():
            for items, rewards in parts:
                total[items] += rewards.sum(dim=0)
        return (total / self.num_contexts).float()

    def random_items(self, num_contexts: int, count: int, generator: torch.Generator) -> Tensor:
        """Items drawn without replacement for each of some contexts, (B, count); what comes again is drawn anew."""
        drawn = torch.randint(self.num_items, (num_contexts, count), generator=generator)
        while not (is_first := head_of(drawn).is_there).all():
            anew = torch.randint(self.num_items, drawn.shape, generator=generator)
            drawn = drawn.where(is_first, anew)
        return drawn

    def subset(self, contexts: Tensor, items: Tensor) -> World:
        """The world of some contexts, (C',), and some items, (N',), by its matrices."""
        return self.dense().subset(contexts, items)


def rows_of(count: int, size: int) -> list[Tensor]:
    """The numbers below `count`, in parts of `size`."""
    return [torch.arange(start, min(start + size, count)) for start in range(0, count, size)]
