"""The answer to a batch of contexts: one search for all of them, as the inference servers ask for it.

Axes: B batch, K candidates.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from serving.errors import InvalidRequestError
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


def answer(retriever: Retriever, context_ids: Sequence[str], num_candidates: int | None) -> BatchAnswer:
    """Pick the candidates of a batch of contexts greedily.

    Args:
        retriever: what answers.
        context_ids: the contexts' own ids, from 1 to MAX_BATCH.
        num_candidates: from 1 to N; default K as trained.

    Raises:
        InvalidRequestError: `num_candidates` is out of range, an id is empty, or the answer would be too large.
        UnknownContextError: the model has never seen one of the contexts.
    """
    k = retriever.count(num_candidates)
    if len(context_ids) * k > MAX_CANDIDATES:
        raise InvalidRequestError(
            "num_candidates",
            f"({k}) times the batch ({len(context_ids)}) exceeds {MAX_CANDIDATES} an answer",
        )
    rows = np.array([retriever.row(context_id) for context_id in context_ids])
    items, scores, experts = retriever.pick(retriever.embed(rows), k)
    item_ids = retriever.bundle.item_ids
    return BatchAnswer(
        [item_ids[item] for item in items.ravel().tolist()], scores, np.broadcast_to(experts, scores.shape)
    )
