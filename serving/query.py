"""What a retriever is asked, and what it answers: the messages' content without gRPC.

Axes: K candidates, L slots, M experts, D embedding dimension.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np


class Query(NamedTuple):
    """Asks for the candidates of one context, named by id, by features or by embedding."""

    context_id: str = ""
    """The context's own id in the training data; empty if features or an embedding are given."""
    num_candidates: int | None = None
    """K, from 1 to N; None: as trained. Fewer come back only where fewer items are allowed."""
    features: Mapping[str, Sequence[str]] | None = None
    """Categories of each feature; those that the model does not know count as absent."""
    embedding: np.ndarray | None = None
    """The user tower's output, (M * D,)."""
    num_slots: int = 0
    """L, from 0 to K: how many candidates the late-stage ranker puts in slots."""
    excluded: Sequence[str] = ()
    """Items that must not come back; unknown ids are ignored."""
    allowed: Sequence[str] | None = None
    """The only items that may come back, or None for all; unknown ids are ignored."""
    seed: int | None = None
    """Seed of a draw from the policy, below 2^64; None: the policy without noise."""


class Degradation(Enum):
    """Why an answer is less than what the model could give."""

    COLD_START = 1
    """The context is unknown: the answer is for the average of the model's contexts."""
    UNRANKED = 2
    """The late-stage ranker does not know the context: the slots are in the candidates' order."""


class Answer(NamedTuple):
    """The candidates of one context, in the order of the positions."""

    item_ids: list[str]
    """(K,), distinct."""
    scores: list[float]
    """Logit of each item under the expert that picked it, (K,)."""
    experts: list[int]
    """The expert that picked each item, (K,)."""
    inclusion_propensities: Sequence[float] = ()
    """Drawn only: each item's probability to be a candidate, (K,)."""
    log_probability: float = 0.0
    """Drawn only: of the candidates in their order."""
    slate: Sequence[int] = ()
    """For each slot, the position of its item among the candidates, (L,)."""
    slate_probabilities: Sequence[float] = ()
    """The late-stage ranker's probability of each slot's item, (L,)."""
    degradations: Sequence[Degradation] = ()
