"""Variance reduction: what multiplies a log-probability instead of the bare reward, and when that keeps its objective.

Axes: C contexts, B batch, G slates per context (a group), L slots, K candidates.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from esr_trainer.config import GROUP

GRPO_SHIFT = 2.0
"""What GRPO adds for the CA family, whose rewards must be positive (arXiv:2605.26385 Theorem 3.3)."""

MEMORY = 20
"""Visits over which a context's baseline forgets: the policy that earned the older rewards is gone."""


@dataclass
class ContextBaseline:
    """A running mean of every context's rewards by slot; part of the run's state."""

    mean: Tensor
    """(C, L)."""
    visits: Tensor
    """(C, 1)."""

    @classmethod
    def new(cls, num_contexts: int, num_slots: int, device: torch.device | None = None) -> "ContextBaseline":
        """A baseline of 0 everywhere."""
        return cls(*(torch.zeros(num_contexts, width, device=device) for width in (num_slots, 1)))

    def tensors(self) -> Mapping[str, Tensor]:
        """What a checkpoint keeps."""
        return {"baseline_mean": self.mean, "baseline_visits": self.visits}

    def read_and_update(self, contexts: Tensor, reward: Tensor) -> Tensor:
        """The baseline before these rewards, (B,), (B, L) -> (B, L); then take them in.

        Reading before updating keeps the baseline independent of the reward that it is subtracted from.
        """
        before = self.mean[contexts]
        visited, position = contexts.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        count = reward.new_zeros(len(visited), 1).index_add_(0, position, reward.new_ones(len(contexts), 1))
        total = reward.new_zeros(len(visited), reward.shape[1]).index_add_(0, position, reward)
        visits = (self.visits[visited] + count).clamp(max=MEMORY)
        self.mean[visited] += (total / count - self.mean[visited]) * (count / visits).clamp(max=1)
        self.visits[visited] = visits
        return before


def group_normalised(reward: Tensor) -> Tensor:
    """GRPO: (r - mean) / std over the G slates of each context (Shao et al. 2024); 0 where all are equal.

    Args:
        reward: (B, L), the slates of a context one after the other.

    Returns:
        (B, L).
    """
    groups = reward.view(-1, GROUP, reward.shape[1])
    std, mean = torch.std_mean(groups, dim=1, keepdim=True, correction=0)
    centred = groups - mean
    return torch.where(std > 0, centred / std.masked_fill(std == 0, 1), 0.0).flatten(0, 1)


def control_variate(baseline: Tensor, shown: Tensor, candidates: Tensor, propensity: Tensor) -> Tensor:
    """LSR-propensity control variate: b (log pi(a) - sum_c p_LSR(c | x, A) log pi(c)), whose gradient has mean zero.

    Given the candidates A (and the slots before), E[e_a - p_LSR] = 0, whatever b(x) is: so the CA family may subtract
    it and keep its objective (DESIGN §4; none of the sources has it).

    Where the probabilities sum to K (`ca-poisson`, `ca-heads`), so has sum_c grad log pi(c) over the candidates:
    E[sum_c grad log pi(c)] = grad sum_a pi(a) = 0. Then `propensity` less 1 / K is as good: no push on the candidates
    alone is left, and under the uniform LSR b becomes a baseline, (r - b) grad log pi(a).

    Args:
        baseline: b, (B, L).
        shown: log pi of the slots' items, (B, L).
        candidates: log pi of the candidates, (B, K).
        propensity: the LSR's probability of each candidate in each slot, given the slots before, (B, L, K); or that
            less 1 / K.

    Returns:
        (B, L).
    """
    # a candidate that can't be shown has log pi of any size, times 0
    return baseline * (shown - torch.einsum("blk,bk->bl", propensity, candidates))
