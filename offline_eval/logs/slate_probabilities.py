"""How probable an ESR's sampled policy makes a slate, slot by slot, where what it draws is shown in the order drawn.

Axes: B slates, U distinct contexts, M experts, N items, K positions, L slots.
"""

import numpy as np
import torch

from esr_trainer.normalisers import taken_and_left
from esr_trainer.policy import sample_candidates
from esr_trainer.quotas import expert_of_position

PREFIXES = 512
"""Draws of the slots above, over which the chance of an item in its slot is averaged."""


def log_of_slots(logits: torch.Tensor, slate: np.ndarray) -> np.ndarray:
    """Log-probability of each slot's item given the slots above: log softmax of its expert over what is left.

    Args:
        logits: (B, M, N).
        slate: rows, (B, L); -1 for an item that is not in the catalogue.

    Returns:
        (B, L); -inf from the first slot on whose item cannot be drawn: not in the catalogue, or shown above already.
    """
    num_items, positions = logits.shape[2], np.arange(slate.shape[1])
    repeats = (slate[:, :, None] == slate[:, None, :]) & (positions[:, None] > positions)
    impossible = ((slate < 0) | repeats.any(axis=2)).cumsum(axis=1) > 0
    drawable = slate.copy()
    for row in np.flatnonzero(impossible[:, -1]):  # a slot's chance does not ask what the slots below hold
        above = slate[row, ~impossible[row]]
        drawable[row, impossible[row]] = np.setdiff1d(np.arange(num_items), above)[: impossible[row].sum()]
    own, left = of_own_expert(logits, torch.from_numpy(drawable))
    found: np.ndarray = np.where(impossible, -np.inf, (own - left).numpy())
    return found


def log_of_slots_alone(logits: torch.Tensor, place: np.ndarray, slate: np.ndarray) -> np.ndarray:
    """Log-probability of each slot's item in its slot, whatever the others hold: (U, M, N), (B,), (B, L) -> (B, L).

    The mean over PREFIXES draws of what stands above, of the item's chance of the slot given that: unbiased, and exact
    for the first slot. The draws are the same whenever a context comes.
    """
    num_slots, found = slate.shape[1], np.empty(slate.shape)
    expert = expert_of_position(num_slots, logits.shape[1])
    for unique in range(len(logits)):
        rows = np.flatnonzero(place == unique)
        many = logits[unique].expand(PREFIXES, -1, -1)
        drawn = sample_candidates(many, num_slots, torch.Generator().manual_seed(0))
        _, left = of_own_expert(many, drawn)  # (PREFIXES, L)
        items = torch.from_numpy(np.maximum(slate[rows], 0))
        own = logits[unique][expert].gather(1, items.T)  # (L, rows)
        for slot in range(num_slots):
            is_above = (drawn[:, :slot, None] == items[:, slot]).any(dim=1)  # (PREFIXES, rows)
            log_chance = (own[slot] - left[:, slot, None]).masked_fill(is_above, -torch.inf)
            found[rows, slot] = (log_chance.logsumexp(dim=0) - np.log(PREFIXES)).numpy()
    return np.where(slate >= 0, found, -np.inf)


def of_own_expert(logits: torch.Tensor, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each position's logit, and the log-normaliser of what is left there, of its own expert: (B, K) each."""
    expert = torch.tensor(expert_of_position(items.shape[1], logits.shape[1])).expand(len(items), 1, -1)
    picked, left = taken_and_left(logits, items)
    return picked.gather(1, expert)[:, 0], left.gather(1, expert)[:, 0]
