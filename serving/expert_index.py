"""The items under one expert: every score computed, or FAISS's approximation.

Axes: B queries, N items, D embedding dimension, k items asked for.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import faiss
import numpy as np

from serving.selection import EVERYTHING, Selection, mask, selector

BLAS_BATCH = 8
"""Queries from which on one matrix product beats as many products with a vector."""
CHUNK = 1 << 23
"""Scores that an exact search holds at once: 32 MB."""
LEAST = np.finfo(np.float32).min
"""Below every score, and above that of a row that is not allowed."""
EXACT_SCAN = 2_000
"""Allowed items up to which an approximate index is not asked: reading them all takes no longer (0.3 ms)."""


class ExpertIndex(Protocol):
    """The items under one expert."""

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """The embeddings of some items: (n,) -> (n, D)."""

    def nearest(self, queries: np.ndarray, k: int, selections: Sequence[Selection]) -> list[np.ndarray]:
        """At least min(k, allowed) distinct allowed rows per query, with the best as far as the kind finds them."""


class FlatExpert:
    """Every score is computed."""

    def __init__(self, embeddings: np.ndarray) -> None:
        """Keep the items' embeddings, (N, D) float32, as they are."""
        self.embeddings = embeddings
        longest = float(np.sqrt(np.einsum("nd,nd->n", embeddings, embeddings).max(initial=0)))
        # two float32 sums of D products differ by less than 2 D eps |q| |v|, in whatever order they are taken
        self._rounding = 2 * embeddings.shape[1] * float(np.finfo(np.float32).eps) * longest

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """The embeddings of some items: (n,) -> (n, D)."""
        return self.embeddings.take(rows, axis=0)

    def scores(self, queries: np.ndarray) -> np.ndarray:
        """All scores but for rounding: (B, D) -> (B, N)."""
        if len(queries) >= BLAS_BATCH:
            product: np.ndarray = queries @ self.embeddings.T
            return product
        scores = np.empty((len(queries), len(self.embeddings)), np.float32)
        for query, row in zip(queries, scores, strict=True):
            np.dot(self.embeddings, query, out=row)
        return scores

    def nearest(self, queries: np.ndarray, k: int, selections: Sequence[Selection]) -> list[np.ndarray]:
        """The rows whose scores are not surely below the k-th best."""
        chunk = max(BLAS_BATCH, CHUNK // len(self.embeddings))
        return [
            rows
            for start in range(0, len(queries), chunk)
            for rows in self._nearest(queries[start : start + chunk], k, selections[start : start + chunk])
        ]

    def _nearest(self, queries: np.ndarray, k: int, selections: Sequence[Selection]) -> list[np.ndarray]:
        """The same for as many queries as fit into memory."""
        num_items = len(self.embeddings)
        scores = self.scores(queries)
        for query, selection in enumerate(selections):
            if selection is not EVERYTHING:
                mask(scores[query], selection)
        bounds = below_the_kth(scores, min(max(k, 1), num_items))
        bounds -= 2 * self._rounding * np.sqrt(np.einsum("bd,bd->b", queries, queries))
        np.maximum(bounds, LEAST, out=bounds)  # of few allowed rows fewer than k groups hold one: a bound of -inf
        return [
            (of_query >= bound).nonzero()[0] if k < selection.allows(num_items) else selection.rows(num_items)
            for of_query, bound, selection in zip(scores, bounds, selections, strict=True)
        ]


class Effort(NamedTuple):
    """How hard an approximate index searches."""

    least: int
    """nprobe or efSearch of an unrestricted query for `num_candidates` items."""
    num_candidates: int
    """K that `least` was chosen for."""
    growth: float
    """More items than K take (k / K)^growth as much."""
    most: int
    """What makes a difference at most."""

    def of(self, k: int, share: float) -> int:
        """For k items, when a share of all items is allowed: as many allowed items are read as of all."""
        effort = self.least * max(1.0, k / self.num_candidates) ** self.growth / share
        return int(min(np.ceil(effort), self.most))


class FaissExpert:
    """An approximate FAISS index; its numbers are the items' rows."""

    def __init__(
        self,
        index: faiss.Index,
        dimension: int,
        effort: Effort,
        parameters: Callable[[int, faiss.IDSelector | None], faiss.SearchParameters],
    ) -> None:
        """Search with an effort.

        Args:
            index: N vectors with reconstruct_batch; what they have beyond D is not the embeddings'.
            dimension: D.
            effort: how hard.
            parameters: nprobe or efSearch, and a selector -> FAISS's parameters.
        """
        self.index = index
        self.dimension = dimension
        self.effort = effort
        self._parameters = parameters

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """The embeddings of some items: (n,) -> (n, D)."""
        faiss.omp_set_num_threads(1)  # holds for the calling thread
        vectors: np.ndarray = self.index.reconstruct_batch(np.ascontiguousarray(rows))[:, : self.dimension]
        return vectors

    def nearest(self, queries: np.ndarray, k: int, selections: Sequence[Selection]) -> list[np.ndarray]:
        """The k best rows that FAISS finds, with more effort where it finds too few."""
        faiss.omp_set_num_threads(1)
        num_items = self.index.ntotal
        if self.index.d > self.dimension:
            queries = np.pad(queries, ((0, 0), (0, self.index.d - self.dimension)))
        if k < num_items and all(selection.allows(num_items) == num_items for selection in selections):
            best = self.index.search(queries, k, params=self._parameters(self.effort.of(k, 1), None))[1]
        else:
            best = np.full((len(queries), 1), -1)
        return [
            rows if rows[-1] >= 0 else self._selected(query[None], k, selection)
            for rows, query, selection in zip(best, queries, selections, strict=True)
        ]

    def _selected(self, query: np.ndarray, k: int, selection: Selection) -> np.ndarray:
        """One query's rows: FAISS reads as many allowed items as of all, then twice as many until it finds enough."""
        num_items = self.index.ntotal
        allowed = selection.allows(num_items)
        if allowed <= max(k, EXACT_SCAN):
            return selection.rows(num_items)
        effort = self.effort.of(k, allowed / num_items)
        rows_only, kept = selector(selection, num_items)  # FAISS keeps no reference to what the selector reads
        while True:
            rows: np.ndarray = self.index.search(query, k, params=self._parameters(effort, rows_only))[1][0]
            if rows[-1] >= 0:
                del kept
                return rows
            if effort == self.effort.most:
                return selection.rows(num_items)
            effort = min(2 * effort, self.effort.most)


def below_the_kth(scores: np.ndarray, k: int) -> np.ndarray:
    """Numbers that at least k of each query's scores reach, and few more: (B, N) -> (B,), 1 <= k <= N.

    The k-th largest of the maxima of N / step groups is reached in k groups, so k times; the maxima are few and cheap.
    """
    num_items = scores.shape[1]
    step = min(32, max(1, num_items // (8 * k)))
    groups = scores[:, : num_items // step * step].reshape(len(scores), step, -1)
    maxima = groups.max(axis=1)
    bounds: np.ndarray = np.partition(maxima, maxima.shape[1] - k, axis=1)[:, maxima.shape[1] - k]
    return bounds
