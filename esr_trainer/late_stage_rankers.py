"""Late-stage rankers (LSR): they order the candidates by their score and show the first L.

Axes: B batch, K candidates, L slots.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from esr_trainer.policy import gumbel

SLATE_DRAWS = 32
"""Drawn slates over which a random ranker's later slots are averaged."""


class LateStageRanker(NamedTuple):
    """Sort by `score_weight` x score, plus `noise` x Gumbel noise: Plackett-Luce with noise 1, a fixed order with 0."""

    score_weight: float
    noise: float

    def keys(self, scores: Tensor, generator: torch.Generator) -> Tensor:
        """What the candidates are sorted by, best first: (B, K) -> (B, K)."""
        keys = self.score_weight * scores
        return keys + self.noise * gumbel(keys.shape, keys, generator) if self.noise else keys

    def rank(self, scores: Tensor, num_slots: int, generator: torch.Generator) -> Tensor:
        """Draw a slate: (B, K) -> the candidates' positions slot by slot, (B, L)."""
        return self.keys(scores, generator).topk(num_slots).indices

    def propensities(self, scores: Tensor, positions: Tensor) -> Tensor:
        """The probability of each candidate in each slot, given the slots before it.

        Args:
            scores: (B, K).
            positions: the candidates' positions slot by slot, (B, L), as `rank` gives them.

        Returns:
            (B, L, K); rows sum to 1.
        """
        shown = torch.nn.functional.one_hot(positions, scores.shape[1])
        if not self.noise:
            return shown.to(scores.dtype)
        gone = (shown.cumsum(dim=1) - shown).bool()
        return (self.score_weight * scores[:, None]).masked_fill(gone, -torch.inf).softmax(dim=2)

    def expected_rewards(self, scores: Tensor, rewards: Tensor, num_slots: int, generator: torch.Generator) -> Tensor:
        """The expected reward of each slot.

        Exact for a fixed order, for the uniform order, and for the first slot of any. Later slots of a Plackett-Luce
        order average, over SLATE_DRAWS drawn orders, the expectation of the slot given those before it (Rao-Blackwell).

        Args:
            scores: (B, K).
            rewards: expected rewards, (B, K).
            num_slots: L.
            generator: the source of the drawn orders.

        Returns:
            (B, L).
        """
        if not self.noise:
            return rewards.gather(1, self.rank(scores, num_slots, generator))
        if not self.score_weight:
            return rewards.mean(dim=1, keepdim=True).expand(-1, num_slots)
        first = ((self.score_weight * scores).softmax(dim=1) * rewards).sum(dim=1, keepdim=True)
        if num_slots == 1:
            return first
        later = torch.zeros(len(scores), num_slots - 1, dtype=rewards.dtype, device=rewards.device)
        for _ in range(SLATE_DRAWS):
            shown = self.rank(scores, num_slots - 1, generator)
            left = self.score_weight * scores
            for slot in range(num_slots - 1):
                left = left.scatter(1, shown[:, slot : slot + 1], -torch.inf)
                later[:, slot] += (left.softmax(dim=1) * rewards).sum(dim=1) / SLATE_DRAWS
        return torch.cat([first, later], dim=1)


LATE_STAGE_RANKERS: Mapping[str, LateStageRanker] = {
    "optimal": LateStageRanker(score_weight=1, noise=0),
    "noisy": LateStageRanker(score_weight=1, noise=1),
    "uniform": LateStageRanker(score_weight=0, noise=1),
    "anti": LateStageRanker(score_weight=-1, noise=0),
    "learned": LateStageRanker(score_weight=1, noise=0),
}
"""Name -> order. What is ordered by is the world's score, but for `learned` and a file a model's."""
