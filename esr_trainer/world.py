"""A world: contexts, items, and the reward that showing an item in a context brings.

Axes: C contexts, N items, B batch, J any number of items per context.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class World:
    """A simulated catalogue and its users: reward ~ Normal(expected_reward, reward_std), independent per showing."""

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

    @property
    def num_contexts(self) -> int:
        """C."""
        return len(self.context_ids)

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.item_ids)

    def scores(self, contexts: Tensor, items: Tensor) -> Tensor:
        """The score of some items: (B,), (B, J) -> (B, J)."""
        return self.score[contexts[:, None], items]

    def expected_rewards(self, contexts: Tensor, items: Tensor) -> Tensor:
        """The expected reward of some items: (B,), (B, J) -> (B, J)."""
        return self.expected_reward[contexts[:, None], items]

    def draw_rewards(self, contexts: Tensor, items: Tensor, generator: torch.Generator) -> Tensor:
        """Show the items, one independent draw each: (B,), (B, J) -> (B, J)."""
        noise = torch.randn(items.shape, generator=generator)
        return self.expected_rewards(contexts, items) + self.reward_std[contexts[:, None], items] * noise

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the ids and rewards: two runs can be compared when it is the same."""
        digest = hashlib.sha256("\n".join((*self.context_ids, "", *self.item_ids)).encode())
        for values in (self.score, self.expected_reward, self.reward_std):
            digest.update(values.numpy().tobytes())
        return digest.hexdigest()
