"""Segments: the contexts that share a value of one feature, such as a country or how active a user is.

Axes: C contexts, S contexts of a segment.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from esr_trainer.command_line import UsageError
from esr_trainer.features import ID, Features, read_features
from esr_trainer.vocabularies import Categories
from offline_eval.intervals import Estimate, bootstrap


class Segment(NamedTuple):
    """Contexts with the same value."""

    value: str
    contexts: np.ndarray
    """Their rows, (S,)."""


class SegmentValue(NamedTuple):
    """What a policy is worth to one segment."""

    value: str
    """Of the column."""
    num_contexts: int
    """S."""
    policy_value: Estimate
    difference: Estimate | None
    """Paired difference to the baseline; None for the baseline itself."""


def segments_of(features: Features, column: str) -> list[Segment]:
    """The segments of one column; a context with several values is in several, one without a value in none.

    Raises:
        UsageError: there is no such column, or it is text.
    """
    columns = {
        name: values for name, values in features.vocabularies.items() if isinstance(values, Categories) and name != ID
    }
    if column not in columns:
        names = ", ".join(columns) or "there are none"
        raise UsageError(f"by ({column}) must be a column of the context features: {names}")
    bags = features.bags[column]
    return [Segment(value, np.flatnonzero((bags == index).any(axis=1))) for index, value in enumerate(columns[column])]


def read_segments(path: Path, column: str, context_ids: tuple[str, ...]) -> list[Segment]:
    """The segments of a column of a CSV or Parquet file whose first column holds the contexts' ids.

    Raises:
        UsageError: the file cannot be read, or there is no such column.
    """
    return segments_of(read_features(context_ids, path), column)


def value_segments(
    segments: list[Segment], values: np.ndarray, differences: np.ndarray | None, confidence: float
) -> tuple[SegmentValue, ...]:
    """Value a policy per segment.

    Args:
        segments: of the contexts.
        values: of every context, (C,).
        differences: to the baseline, (C,), or None for the baseline itself.
        confidence: of the intervals.
    """
    return tuple(
        SegmentValue(
            value=segment.value,
            num_contexts=len(segment.contexts),
            policy_value=bootstrap(values[segment.contexts], confidence=confidence),
            difference=None if differences is None else bootstrap(differences[segment.contexts], confidence=confidence),
        )
        for segment in segments
    )
