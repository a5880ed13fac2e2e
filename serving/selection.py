"""Which items a query may find, and how scores and FAISS are told.

Axes: N items, A allowed items, E excluded items.
"""

from typing import NamedTuple, Self

import faiss
import numpy as np
from numpy.typing import ArrayLike

NONE = np.empty(0, np.int64)


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


def mask(scores: np.ndarray, selection: Selection) -> None:
    """Set the scores of rows that are not allowed to -inf: (N,), in place."""
    if selection.allowed is None:
        if len(selection.excluded):
            scores[selection.excluded] = -np.inf
    else:
        kept = scores[selection.allowed]
        scores[:] = -np.inf
        scores[selection.allowed] = kept


def selector(selection: Selection, num_items: int) -> tuple[faiss.IDSelector, object]:
    """FAISS's form of a selection, and what must live as long."""
    free = np.zeros(num_items, bool) if selection.allowed is not None else np.ones(num_items, bool)
    if selection.allowed is not None:
        free[selection.allowed] = True
    free[selection.excluded] = False
    bits = np.packbits(free, bitorder="little")
    return faiss.IDSelectorBitmap(num_items, faiss.swig_ptr(bits)), bits
