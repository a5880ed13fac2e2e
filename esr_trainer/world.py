"""A world: contexts, items, and the reward that showing an item in a context brings.

Axes: C contexts, N items, B batch, J any number of items per context.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from esr_trainer.command_line import UsageError

MAX_CELLS = 250_000_000
"""C x N of the largest world: each of its dense float32 matrices then takes 1 GB."""


MAX_ROWS = 100_000_000
"""C + N of the largest world without matrices."""


def has_matrices(num_contexts: int, num_items: int) -> bool:
    """Whether a world is small enough for matrices."""
    return num_contexts * num_items <= MAX_CELLS


def check_size(num_contexts: int, num_items: int) -> None:
    """Refuse a world whose dense matrices would not fit into memory, before they are made.

    Raises:
        UsageError: C x N exceeds MAX_CELLS.
    """
    if not has_matrices(num_contexts, num_items):
        raise UsageError(
            f"world ({num_contexts} contexts x {num_items} items) has more than {MAX_CELLS:,} cells, the most that its "
            "dense matrices may have"
        )


def check_rows(num_contexts: int, num_items: int) -> None:
    """Refuse a world whose rows alone, with an id and a few numbers each, would not fit into memory.

    Raises:
        UsageError: C + N exceeds MAX_ROWS.
    """
    if num_contexts + num_items > MAX_ROWS:
        raise UsageError(
            f"world ({num_contexts} contexts x {num_items} items) has more than {MAX_ROWS:,} rows, the most that this "
            "process holds"
        )


class Catalogue(Protocol):
    """What is told apart by its ids: contexts and items."""

    @property
    def context_ids(self) -> tuple[str, ...]:
        """The data's own ids, C."""

    @property
    def item_ids(self) -> tuple[str, ...]:
        """The data's own ids, N."""


@dataclass(frozen=True)
class World:
    """A simulated catalogue and its users: reward ~ Normal(expected_reward, reward_std), independent per impression."""

    environment: str
    """Its name in ENVIRONMENTS."""
    description: str
    """One line for people: what the data is, and whether it is real."""
    context_ids: tuple[str, ...]
    """The data's own ids, C."""
    item_ids: tuple[str, ...]
    """The data's own ids, N."""
    score: Tensor
    """What a late-stage ranker ranks by, (C, N) float32."""
    expected_reward: Tensor
    """(C, N) float32, at least 0."""
    reward_std: Tensor
    """(C, N) float32, at least 0; may be a broadcast view."""
    source: str
    """What decides it: a generator's name, seed and shape, or the SHA-256 of a file. Not the values: processors differ
    in the last bit of what they compute."""

    def __post_init__(self) -> None:
        """Check that the parts fit.

        Raises:
            ValueError: shapes differ, an id comes twice, or a value is not finite.
        """
        shape = (len(self.context_ids), len(self.item_ids))
        for name in ("score", "expected_reward", "reward_std"):
            values = getattr(self, name)
            if values.shape != shape:
                raise ValueError(f"{name} has shape {tuple(values.shape)}, not {shape} like the ids")
            if not values.isfinite().all():
                raise ValueError(f"{name} has values that are not finite")
        for name, ids in (("context", self.context_ids), ("item", self.item_ids)):
            if len(set(ids)) < len(ids):
                raise ValueError(f"a {name} id comes twice")

    @property
    def num_contexts(self) -> int:
        """C."""
        return len(self.context_ids)

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.item_ids)

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.score.device

    def to(self, device: str) -> "World":
        """The same world with its tensors elsewhere."""
        tensors = {name: getattr(self, name).to(device) for name in ("score", "expected_reward", "reward_std")}
        return self if self.device.type == device else replace(self, **tensors)

    def scores(self, contexts: Tensor, items: Tensor) -> Tensor:
        """The score of some items: (B,), (B, J) -> (B, J)."""
        return self.score[contexts[:, None], items]

    def expected_rewards(self, contexts: Tensor, items: Tensor) -> Tensor:
        """The expected reward of some items: (B,), (B, J) -> (B, J)."""
        return self.expected_reward[contexts[:, None], items]

    def draw_rewards(self, contexts: Tensor, items: Tensor, generator: torch.Generator) -> Tensor:
        """Show the items, one independent draw each: (B,), (B, J) -> (B, J)."""
        noise = torch.randn(items.shape, generator=generator, device=items.device)
        return self.expected_rewards(contexts, items) + self.reward_stds(contexts, items) * noise

    def reward_stds(self, contexts: Tensor, items: Tensor) -> Tensor:
        """The standard deviation of some items' rewards: (B,), (B, J) -> (B, J)."""
        return self.reward_std[contexts[:, None], items]

    def best_rewards(self, count: int) -> Tensor:
        """The largest expected rewards of every context, best first, (C, count)."""
        return self.expected_reward.topk(count, dim=1).values

    def mean_rewards(self) -> Tensor:
        """Every item's expected reward, mean over contexts, (N,)."""
        return self.expected_reward.mean(dim=0)

    def random_items(self, num_contexts: int, count: int, generator: torch.Generator) -> Tensor:
        """Items drawn without replacement for each of some contexts, (B, count)."""
        noise = torch.rand((num_contexts, self.num_items), generator=generator, device=self.device)
        return noise.topk(count).indices

    def subset(self, contexts: Tensor, items: Tensor) -> "World":
        """The world of some contexts, (C',), and some items, (N',)."""
        return replace(
            self,
            context_ids=tuple(self.context_ids[row] for row in contexts),
            item_ids=tuple(self.item_ids[row] for row in items),
            score=self.score[contexts][:, items],
            expected_reward=self.expected_reward[contexts][:, items],
            reward_std=self.reward_std[contexts][:, items],
            source=f"{self.source}, {len(contexts)} x {len(items)} of it",
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what decides the world: two runs can be compared when it is the same."""
        return hashlib.sha256(f"{self.environment}: {self.source}".encode()).hexdigest()
