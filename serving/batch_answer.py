"""The answer to a batch of contexts: one search for all of them, as the inference servers ask for it.

Axes: B batch, K candidates.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from serving.errors import InvalidRequestError, ServingError
from serving.query import Answer, Query
from serving.retriever import Retriever

MAX_BATCH = 1024
"""The most contexts of a request."""
MAX_CANDIDATES = 1 << 20
"""The most candidates of an answer, over all its contexts: some 30 MB of tensors."""


class BatchAnswer(NamedTuple):
    """The candidates of a batch."""

    item_ids: list[str]  # B * K, row by row
    scores: np.ndarray  # (B, K) float32
    experts: np.ndarray  # (B, K) int64


def queries_of(retriever: Retriever, context_ids: Sequence[str], num_candidates: int | None) -> list[Query]:
    """One greedy query per context.

    Args:
        retriever: what answers.
        context_ids: the contexts' own ids, from 1 to MAX_BATCH.
        num_candidates: from 1 to N; default K as trained.

    Raises:
        InvalidRequestError: the answer would be too large.
    """
    k = retriever.bundle.manifest.num_candidates if num_candidates is None else num_candidates
    if len(context_ids) * k > MAX_CANDIDATES:
        rule = f"({k}) times the batch ({len(context_ids)}) exceeds {MAX_CANDIDATES} an answer"
        raise InvalidRequestError("num_candidates", rule)
    return [Query(context_id, k) for context_id in context_ids]


def combined(answers: Sequence[Answer | ServingError]) -> BatchAnswer:
    """The answers as one; tensors have no room for an error of a single context, so the first is everybody's.

    Raises:
        ServingError: a query was refused.
    """
    found = []
    for answer in answers:
        if isinstance(answer, ServingError):
            raise answer
        found.append(answer)
    return BatchAnswer(
        [item_id for answer in found for item_id in answer.item_ids],
        np.array([answer.scores for answer in found], np.float32),
        np.array([answer.experts for answer in found], np.int64),
    )
