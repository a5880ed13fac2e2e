"""The index of a bundle's items: the best items under one expert, and under the mixture's greedy rule.

Whatever kind of index finds an item, its score comes from `scores_of` alone: an answer depends neither on how many
queries were asked together nor on what was excluded. No gRPC and no torch in here.

Axes: B queries, M experts, N items, D embedding dimension, k items asked for, A allowed items, E excluded items,
c = min(k, allowed items) items that are found, K candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from esr_trainer.quotas import quotas
from serving.expert_index import ExpertIndex, FlatExpert
from serving.selection import EVERYTHING, Selection


class Found(NamedTuple):
    """The best items of one query, best first; of equal scores the lower row comes first."""

    rows: np.ndarray
    """(c,) int64, distinct."""
    scores: np.ndarray
    """(c,) float32."""


class Picked(NamedTuple):
    """The candidates of one context, in the order of the positions; K, or as many as are allowed."""

    rows: np.ndarray
    """(K,) int64, distinct."""
    scores: np.ndarray
    """(K,) float32."""
    experts: np.ndarray
    """(K,) int64, the expert of each position."""


@dataclass(frozen=True)
class ItemIndex:
    """The items under every expert; loaded once, never changed, and safe to search from many threads."""

    kind: str
    """A name in index_files.KINDS."""
    experts: tuple[ExpertIndex, ...]
    """M."""
    num_items: int
    """N."""
    dimension: int
    """D."""

    @property
    def is_exact(self) -> bool:
        """Whether every search gives the best items."""
        return all(isinstance(expert, FlatExpert) for expert in self.experts)

    def search(self, queries: np.ndarray, expert: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best items under one expert.

        Args:
            queries: (B, D) float32, finite.
            expert: from 0 to M - 1.
            k: from 1 to N.

        Returns:
            Rows (B, k) int64 and scores (B, k) float32; best first, of equal scores the lower row first.

        Raises:
            ValueError: k is out of range.
        """
        if not 1 <= k <= self.num_items:
            raise ValueError(f"k ({k}) must be from 1 to the index's {self.num_items} items")
        found = self.search_selected(queries, expert, k, [EVERYTHING] * len(queries))
        rows, scores = np.empty((len(found), k), np.int64), np.empty((len(found), k), np.float32)
        for query, best in enumerate(found):
            rows[query], scores[query] = best
        return rows, scores

    def search_selected(self, queries: np.ndarray, expert: int, k: int, selections: Sequence[Selection]) -> list[Found]:
        """The best items that each query may find: min(k, allowed) of them, never fewer.

        Args:
            queries: (B, D) float32, finite.
            expert: from 0 to M - 1.
            k: at least 0.
            selections: B.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        space = self.experts[expert]
        return [
            best_of(rows, scores_of(space.vectors(rows), query), k)
            for query, rows in zip(queries, space.nearest(queries, k, selections), strict=True)
        ]

    def scores(self, query: np.ndarray, expert: int) -> np.ndarray:
        """Every item's score, but for rounding: (D,) -> (N,) float32.

        Raises:
            ValueError: the index is not exact.
        """
        space = self.experts[expert]
        if not isinstance(space, FlatExpert):
            raise ValueError(f"the scores of all items need an exact index, not {self.kind}")
        scores: np.ndarray = space.scores(query[None])[0]
        return scores

    def reconstruct(self, rows: np.ndarray, expert: int) -> np.ndarray:
        """The embeddings of some items under one expert: (n,) -> (n, D)."""
        return self.experts[expert].vectors(np.asarray(rows, np.int64))

    def pick(
        self, embeddings: np.ndarray, num_candidates: int, selections: Sequence[Selection] | None = None
    ) -> list[Picked]:
        """Expert by expert, each its quota of the best items that no earlier expert took (DESIGN §3).

        Args:
            embeddings: (B, M, D) float32, finite.
            num_candidates: K, at least 1.
            selections: B, or None to allow every item.

        Returns:
            B; min(K, allowed) candidates each.
        """
        left = [EVERYTHING] * len(embeddings) if selections is None else list(selections)
        picked: list[Picked] = []
        for expert, quota in enumerate(quotas(num_candidates, len(self.experts))):
            found = self.search_selected(embeddings[:, expert], expert, quota, left)
            part = [Picked(rows, scores, np.full(len(rows), expert)) for rows, scores in found]
            picked = [joined(*both) for both in zip(picked, part, strict=True)] if picked else part
            if expert + 1 < len(self.experts):
                left = [query.without(rows) for query, (rows, _) in zip(left, found, strict=True)]
        return picked


def joined(first: Picked, second: Picked) -> Picked:
    """The positions of some experts, then those of the next."""
    return Picked(*(np.concatenate(values) for values in zip(first, second, strict=True)))


def scores_of(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """The one score of an item, the same bits in any company: (n, D), (D,) -> (n,)."""
    scores: np.ndarray = np.einsum("nd,d->n", vectors, query)
    return scores


def best_of(rows: np.ndarray, scores: np.ndarray, k: int) -> Found:
    """The k best, of equal scores the lower row first: (n,), (n,) -> (min(k, n),) each."""
    order = np.lexsort((rows, -scores))[:k]
    return Found(rows[order], scores[order])
