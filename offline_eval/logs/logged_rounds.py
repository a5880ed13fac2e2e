"""Rounds of a log, whoever wrote it.

Axes: R rounds of a page, L slots, K candidates.
"""

import math
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import polars as pl

from esr_trainer.feedback_record import Feedback


class LoggedRounds(NamedTuple):
    """Rounds as they were logged, ids as text, null for none; None is what this kind of log cannot tell."""

    contexts: pl.Series
    """(R,), text."""
    slate: pl.Series
    """(R * L,), text, slot after slot; null in a slot that was not filled."""
    rewards: np.ndarray
    """(R, L); 0 in a slot that was not filled."""
    log_propensities: np.ndarray | None = None
    """Log-probability of each slot's item as shown, given the slots before it, (R, L); 0 in an empty slot."""
    log_marginals: np.ndarray | None = None
    """Log-probability of each slot's item in that slot, whatever the others hold, (R, L); 0 in an empty slot."""
    candidates: pl.Series | None = None
    """(R * K,), text, position after position; null beyond a round's own K."""
    inclusion: np.ndarray | None = None
    """Inclusion probability of each candidate, (R, K); nan beyond a round's own K."""
    log_inclusion: np.ndarray | None = None
    """Log inclusion probability of each slot's item, (R, L); 0 in an empty slot."""
    log_set_probability: np.ndarray | None = None
    """Log-probability of the ordered candidates, (R,)."""
    lsr_probabilities: np.ndarray | None = None
    """The LSR's own probability of each slot's item given those above, (R, L); nan where it was not logged."""

    @property
    def shown(self) -> np.ndarray:
        """(R, L) bool: the slots that were filled."""
        filled: np.ndarray = self.slate.is_not_null().to_numpy().reshape(self.rewards.shape)
        return filled

    @property
    def num_candidates(self) -> np.ndarray:
        """Each round's own K, (R,)."""
        assert self.candidates is not None
        present = self.candidates.is_not_null().to_numpy().reshape(len(self.contexts), -1)
        count: np.ndarray = present.sum(axis=1)
        return count


def of_records(records: Sequence[Feedback]) -> LoggedRounds:
    """Sampled records side by side."""
    num_slots = max(len(record.slate) for record in records)
    num_candidates = max(len(record.shown.candidates) for record in records)
    log_inclusion = [
        [math.log(dict(zip(record.shown.candidates, record.shown.inclusion_propensities, strict=True))[item])
         for item in record.slate]
        for record in records
    ]  # fmt: skip
    return LoggedRounds(
        contexts=pl.Series([record.shown.context_id for record in records], dtype=pl.String),
        slate=padded_ids([record.slate for record in records], num_slots),
        rewards=padded([record.rewards for record in records], num_slots, 0.0),
        candidates=padded_ids([record.shown.candidates for record in records], num_candidates),
        inclusion=padded([record.shown.inclusion_propensities for record in records], num_candidates, math.nan),
        log_inclusion=padded(log_inclusion, num_slots, 0.0),
        log_set_probability=np.array([record.shown.log_probability for record in records], dtype=np.float64),
        lsr_probabilities=padded([record.lsr_probabilities for record in records], num_slots, math.nan),
    )


def padded(rows: Sequence[Sequence[float]], width: int, filler: float) -> np.ndarray:
    """Rows of numbers as a matrix."""
    return np.array([[*row, *[filler] * (width - len(row))] for row in rows], dtype=np.float64)


def padded_ids(rows: Sequence[Sequence[str]], width: int) -> pl.Series:
    """Rows of ids one after the other, each filled up with null."""
    flat = chain.from_iterable((*row, *[None] * (width - len(row))) for row in rows)
    return pl.Series(list(flat), dtype=pl.String)


def rows_of(ids: pl.Series, known: pl.Series) -> np.ndarray:
    """Where each id is among the known ones, -1 where it is not: (R,) int64."""
    rows = ids.replace_strict(known, pl.int_range(len(known), eager=True), default=-1, return_dtype=pl.Int64)
    found: np.ndarray = rows.fill_null(-1).to_numpy()
    return found
