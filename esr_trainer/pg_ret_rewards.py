"""REWARDS: what a yes to a pair earns in PG-Ret; a no loses as much.

Axes: B batch, J pairs of a context.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from esr_trainer.command_line import UsageError
from esr_trainer.user_function import user_function


class Judgement(NamedTuple):
    """What is known of pairs."""

    relevance: Tensor
    """From 0 to 1, (B, J) float32."""
    is_current: Tensor
    """Whether the item is in the current policy's top, (B, J) bool."""
    is_produced: Tensor
    """Whether it is in production's top, (B, J) bool."""


Reward = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The three of a Judgement -> R_b from -1 to 1, (B, J)."""


def recall(relevance: Tensor, is_current: Tensor, is_produced: Tensor) -> Tensor:
    """1 if relevant and missing from the top, -1 if irrelevant and in it, else 0 (PG-Ret, the recall task).

    Of a relevance g between 0 and 1: g if missing, g - 1 if in it.

    Args:
        relevance: from 0 to 1, (B, J).
        is_current: (B, J).
        is_produced: not used.

    Returns:
        (B, J).
    """
    return relevance - is_current.to(relevance.dtype)


def novelty(relevance: Tensor, is_current: Tensor, is_produced: Tensor) -> Tensor:
    """`recall` where what production has in its top counts as irrelevant (PG-Ret, the novelty task).

    Args:
        relevance: from 0 to 1, (B, J).
        is_current: (B, J).
        is_produced: (B, J).

    Returns:
        (B, J).
    """
    return recall(relevance.masked_fill(is_produced, 0.0), is_current, is_produced)


REWARDS: Mapping[str, Reward] = {"recall": recall, "novelty": novelty}


def open_reward(name: str) -> Reward:
    """A member of REWARDS, or the function of a user's own file, its answers checked.

    Raises:
        UsageError: the file cannot be run, or has no such function.
    """
    if name in REWARDS:
        return REWARDS[name]
    function = user_function(name, "reward")

    def checked(relevance: Tensor, is_current: Tensor, is_produced: Tensor) -> Tensor:
        found = function(relevance, is_current, is_produced)
        if not isinstance(found, Tensor) or found.shape != relevance.shape:
            raise UsageError(f"reward ({name}) gave no tensor of shape {tuple(relevance.shape)}")
        found = found.to(relevance.dtype)
        wrong = found[~((found >= -1) & (found <= 1))]
        if len(wrong):
            raise UsageError(f"reward ({name}) gave {float(wrong[0]):g}: it must be from -1 to 1")
        return found

    return checked
