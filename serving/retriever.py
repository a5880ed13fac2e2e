"""The retriever: from a context to its candidates, exactly as the trained policy picks without noise.

No gRPC and no torch in here.

Axes: B batch, M experts, N items, D embedding dimension, K candidates.
"""

from pathlib import Path
from typing import NamedTuple, Self

import faiss
import numpy as np

from serving.bundle import Bundle, latest_version, load_bundle
from serving.errors import BundleCorruptError, InvalidRequestError, UnknownContextError, quoted

SCORE_TOLERANCE = 1e-3
"""How far a golden query's scores may be from the exporting machine's, relative to the largest."""


SWAPPED = 0.02
"""Share of the golden queries' items that may differ: items whose scores tie can swap on another processor."""


class Candidates(NamedTuple):
    """The candidates of one context, in the order of the positions."""

    item_ids: list[str]
    scores: list[float]
    experts: list[int]


class Retriever:
    """A loaded bundle that answers."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._row_of = {context_id: row for row, context_id in enumerate(bundle.context_ids)}
        faiss.omp_set_num_threads(1)  # holds for the calling thread: one request, one thread

    @classmethod
    def open(cls, root: str | Path, version: int | None = None) -> Self:
        """Load a version of a bundle root, the highest by default, and check its golden queries.

        Raises:
            BundleUnusableError: there is no such bundle, or it has another schema.
            BundleCorruptError: a file is missing or changed, or a golden query is answered otherwise.
        """
        root = Path(root)
        version = latest_version(root) if version is None else version
        retriever = cls(load_bundle(root / str(version), version))
        retriever.check_golden_queries()
        return retriever

    def retrieve(self, context_id: str, num_candidates: int | None = None) -> Candidates:
        """The candidates of one context.

        Args:
            context_id: the context's own id in the training data.
            num_candidates: from 1 to N; default K as trained.

        Raises:
            InvalidRequestError: `num_candidates` is out of range, or the id is empty.
            UnknownContextError: the model has never seen the context.
        """
        k = self.count(num_candidates)
        rows, scores, experts = self.pick(self.embed(np.array([self.row(context_id)])), k)
        item_ids = self.bundle.item_ids
        return Candidates([item_ids[item] for item in rows[0]], scores[0].tolist(), experts.tolist())

    def count(self, num_candidates: int | None) -> int:
        """How many candidates are meant by what was asked for: from 1 to N, K as trained if nothing was.

        Raises:
            InvalidRequestError: it is out of range.
        """
        manifest = self.bundle.manifest
        k = manifest.num_candidates if num_candidates is None else num_candidates
        if not 1 <= k <= manifest.num_items:
            raise InvalidRequestError(
                "num_candidates", f"({k}) must be from 1 to the model's {manifest.num_items} items"
            )
        return k

    def row(self, context_id: str) -> int:
        """The row of a context's own id.

        Raises:
            InvalidRequestError: the id is empty.
            UnknownContextError: the model has never seen the context.
        """
        if not context_id:
            raise InvalidRequestError("context_id", "must not be empty")
        row = self._row_of.get(context_id)
        if row is None:
            raise UnknownContextError(f"context_id ({quoted(context_id)}) is not among the model's contexts")
        return row

    def embed(self, rows: np.ndarray) -> np.ndarray:
        """The experts' embeddings of some contexts: rows (B,) -> (B, M, D)."""
        bags = {name: values[rows] for name, values in self.bundle.context_features.items()}
        embeddings: np.ndarray = self.bundle.user_tower.run(None, bags)[0]
        return embeddings

    def pick(self, embeddings: np.ndarray, num_candidates: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Expert by expert, each its quota of the best items that no earlier expert took.

        An expert's first K_1 + ... + K_m items are enough: at most K_1 + ... + K_{m-1} of them are taken.

        Args:
            embeddings: (B, M, D).
            num_candidates: K.

        Returns:
            Item rows (B, K), scores (B, K), and the expert of each position (K,).
        """
        num_items = self.bundle.manifest.num_items
        share, rest = divmod(num_candidates, embeddings.shape[1])
        rows = np.empty((len(embeddings), num_candidates), np.int64)
        scores = np.empty((len(embeddings), num_candidates), np.float32)
        experts = np.empty(num_candidates, np.int64)
        start = 0
        for expert in range(min(embeddings.shape[1], num_candidates)):
            end = start + share + (expert < rest)
            block = faiss.IDSelectorRange(expert * num_items, (expert + 1) * num_items)
            best_scores, best = self.bundle.index.search(
                np.ascontiguousarray(embeddings[:, expert]),
                end,
                params=faiss.SearchParameters(sel=block),  # type: ignore[call-arg]
            )
            best -= expert * num_items
            for query in range(len(embeddings) if start else 0):
                free = np.flatnonzero(~np.isin(best[query], rows[query, :start]))[: end - start]
                best[query, : end - start] = best[query, free]
                best_scores[query, : end - start] = best_scores[query, free]
            rows[:, start:end] = best[:, : end - start]
            scores[:, start:end] = best_scores[:, : end - start]
            experts[start:end] = expert
            start = end
        return rows, scores, experts

    def check_golden_queries(self) -> None:
        """Answer the golden queries; items and scores must be those of the model that was exported.

        Raises:
            BundleCorruptError: more items or larger scores differ than ties and rounding explain.
        """
        golden = self.bundle.golden
        expected = golden["scores"]
        rows, scores, _ = self.pick(self.embed(golden["contexts"]), expected.shape[1])
        other = float((rows != golden["candidates"]).mean())
        if other > SWAPPED:
            raise BundleCorruptError(f"golden queries are answered otherwise: {other:.0%} of the items differ")
        if not np.allclose(scores, expected, rtol=0, atol=SCORE_TOLERANCE * max(1.0, float(np.abs(expected).max()))):
            worst = float(np.abs(scores - expected).max())
            raise BundleCorruptError(f"golden queries are answered otherwise: scores differ by up to {worst:.2g}")
