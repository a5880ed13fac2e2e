"""The index of a bundle's items: the best items under one expert, and under the mixture's greedy rule.

Whatever kind of index finds an item, its score comes from `scores_of` alone: an answer depends neither on how many
queries were asked together nor on what was excluded. No gRPC and no torch in here.

Axes: B queries, M experts, N items, D embedding dimension, k items asked for, A allowed items, E excluded items,
c = min(k, allowed items) items that are found, K candidates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import faiss
import numpy as np
from numpy.typing import ArrayLike

from esr_trainer.quotas import quotas

BLAS_BATCH = 8
"""Queries from which on one matrix product beats as many products with a vector."""
CHUNK = 1 << 23
"""Scores that an exact search holds at once: 32 MB."""
EXACT_SCAN = 2_000
"""Allowed items up to which an approximate index is not asked: reading them all takes no longer (0.3 ms)."""
NONE = np.empty(0, np.int64)


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


class Selection(NamedTuple):
    """What a query may find: the allowed rows, or everything but the excluded ones."""

    excluded: np.ndarray = NONE
    """(E,) int64, distinct; none where `allowed` says it all."""
    allowed: np.ndarray | None = None
    """(A,) int64, distinct; None allows every row."""

    @classmethod
    def of(cls, allowed: ArrayLike | None = None, excluded: ArrayLike = ()) -> Self:
        """Only the allowed rows (None: all) without the excluded ones; rows may come twice, all from 0 to N - 1."""
        excluded = np.unique(np.asarray(excluded, np.int64))
        if allowed is None:
            return cls(excluded)
        return cls(NONE, np.setdiff1d(np.asarray(allowed, np.int64), excluded))

    def without(self, rows: np.ndarray) -> Self:
        """The same, less some of its rows."""
        if self.allowed is None:
            return type(self)(np.concatenate([self.excluded, rows]))
        return type(self)(NONE, np.setdiff1d(self.allowed, rows, assume_unique=True))

    def allows(self, num_items: int) -> int:
        """How many of N items are allowed."""
        return num_items - len(self.excluded) if self.allowed is None else len(self.allowed)

    def rows(self, num_items: int) -> np.ndarray:
        """The allowed rows of N, ascending."""
        if self.allowed is not None:
            return np.sort(self.allowed)
        free = np.ones(num_items, bool)
        free[self.excluded] = False
        return np.flatnonzero(free)


EVERYTHING = Selection()


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


def mask(scores: np.ndarray, selection: Selection) -> None:
    """Set the scores of rows that are not allowed to -inf: (N,), in place."""
    if selection.allowed is None:
        if len(selection.excluded):
            scores[selection.excluded] = -np.inf
    else:
        kept = scores[selection.allowed]
        scores[:] = -np.inf
        scores[selection.allowed] = kept


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


def selector(selection: Selection, num_items: int) -> tuple[faiss.IDSelector, object]:
    """FAISS's form of a selection, and what must live as long."""
    free = np.zeros(num_items, bool) if selection.allowed is not None else np.ones(num_items, bool)
    if selection.allowed is not None:
        free[selection.allowed] = True
    free[selection.excluded] = False
    bits = np.packbits(free, bitorder="little")
    return faiss.IDSelectorBitmap(num_items, faiss.swig_ptr(bits)), bits
