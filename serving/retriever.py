"""The retriever: from a context to its candidates, exactly as the trained policy picks without noise.

No gRPC and no torch in here.

Axes: B batch, M experts, N items, D embedding dimension, K candidates.
"""

from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from serving.bundle import Bundle, latest_version, load_bundle
from serving.errors import InvalidRequestError, UnknownContextError
from serving.golden_queries import check_answers


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
        manifest = self.bundle.manifest
        k = manifest.num_candidates if num_candidates is None else num_candidates
        if not 1 <= k <= manifest.num_items:
            raise InvalidRequestError(
                "num_candidates", f"({k}) must be from 1 to the model's {manifest.num_items} items"
            )
        if not context_id:
            raise InvalidRequestError("context_id", "must not be empty")
        row = self._row_of.get(context_id)
        if row is None:
            raise UnknownContextError(f"context_id ({context_id[:100]}) is not among the model's contexts")
        rows, scores, experts = self.pick(self.embed(np.array([row])), k)
        item_ids = self.bundle.item_ids
        return Candidates([item_ids[item] for item in rows[0]], scores[0].tolist(), experts.tolist())

    def embed(self, rows: np.ndarray) -> np.ndarray:
        """The experts' embeddings of some contexts: rows (B,) -> (B, M, D)."""
        bags = {name: values[rows] for name, values in self.bundle.context_features.items()}
        embeddings: np.ndarray = self.bundle.user_tower.run(None, bags)[0]
        return embeddings

    def pick(self, embeddings: np.ndarray, num_candidates: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Expert by expert, each its quota of the best items that no earlier expert took.

        Args:
            embeddings: (B, M, D).
            num_candidates: K.

        Returns:
            Item rows (B, K), scores (B, K), and the expert of each position (K,).
        """
        picked = self.bundle.index.pick(embeddings, num_candidates)
        rows, scores = np.stack([one.rows for one in picked]), np.stack([one.scores for one in picked])
        return rows, scores, picked[0].experts

    def check_golden_queries(self) -> None:
        """Answer the golden queries; items and scores must be those of the model that was exported.

        Raises:
            BundleCorruptError: more items or larger scores differ than recall, ties and rounding explain.
        """
        golden, manifest = self.bundle.golden, self.bundle.manifest
        picked = self.bundle.index.pick(self.embed(golden["contexts"]), manifest.num_candidates)
        check_answers(picked, golden, manifest.num_experts, manifest.recall)
