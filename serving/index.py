"""The item index: every expert's vectors, searched by inner product.

Axes: B batch, M experts, N items, D embedding dimension.
"""

import faiss
import numpy as np


class ItemIndex:
    """The exact index: one flat index per expert over the same vectors."""

    is_exact = True

    def __init__(self, index: faiss.Index, num_experts: int) -> None:
        vectors = index.reconstruct_n(0, index.ntotal)
        self.vectors = vectors.reshape(num_experts, -1, index.d)
        self.experts = []
        for block in self.vectors:
            expert = faiss.IndexFlatIP(index.d)
            expert.add(block)
            self.experts.append(expert)

    def search(self, queries: np.ndarray, expert: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best k rows of one expert and their scores: (B, D) -> (B, k), (B, k)."""
        scores, rows = self.experts[expert].search(queries, k)
        return rows, scores

    def scores(self, query: np.ndarray, expert: int) -> np.ndarray:
        """Every item's logit: (D,) -> (N,)."""
        result: np.ndarray = self.vectors[expert] @ query
        return result
