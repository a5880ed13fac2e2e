"""The items that matter most in a context, by FAISS over the item embeddings of some steps ago.

Every R steps, and sooner while a run is young, the embeddings are copied, and an index of the copy is built in a thread
(FAISS gives up Python's lock) while the run goes on; when the next copy is due it takes over, waited for if need be. So
which index a step asks depends on nothing but the steps before it, and a run that goes on from a checkpoint asks the
same.

Axes: B batch, M experts, N items, D embedding dimension.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import faiss
import numpy as np
import torch
from torch import Tensor

from esr_trainer.faiss_bytes import deserialize
from esr_trainer.quotas import quotas

LISTS_PER_ROOT = 2
"""Clusters per square root of N: fewer take longer to search, more take longer to build."""
MOST_LISTS = 4096
PROBED = 16
"""Clusters that a search reads."""
POINTS_PER_LIST = 32
"""Items that k-means sees, per cluster."""
ITERATIONS = 4
"""Rounds of k-means: the head is a help, not the law."""
CHUNK = 1 << 16
"""Items that are put into their clusters at a time."""

FIRST = 8
"""The first copy after the start is due after R / FIRST steps, then after twice as many, until R: young tables move."""

Snapshot = Callable[[], np.ndarray]
"""A copy of the item embeddings as they are now, (M, N, D) float32."""


def build(embeddings: np.ndarray, seed: int) -> faiss.Index:
    """One expert's items, (N, D) float32, in clusters by distance, a byte per number, searched by inner product.

    Clusters by distance keep an item's length, which clusters by product lose.
    """
    faiss.omp_set_num_threads(1)  # holds for this thread: the same sums whatever the machine does
    num_items, dimension = embeddings.shape
    lists = max(1, min(int(LISTS_PER_ROOT * num_items**0.5), MOST_LISTS, num_items // POINTS_PER_LIST))
    clusters = faiss.Kmeans(
        dimension,
        lists,
        niter=ITERATIONS,
        seed=seed,
        max_points_per_centroid=POINTS_PER_LIST,
        min_points_per_centroid=1,
    )
    clusters.train(embeddings)
    centres, nearest = faiss.IndexFlatIP(dimension), faiss.IndexFlatL2(dimension)
    for quantizer in (centres, nearest):
        quantizer.add(clusters.centroids)
    index = faiss.IndexIVFScalarQuantizer(
        centres, dimension, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False
    )
    index.sq.train(embeddings)
    index.is_trained = True
    index.nprobe = PROBED
    for start in range(0, num_items, CHUNK):
        some = embeddings[start : start + CHUNK]
        rows = np.arange(start, start + len(some))
        cluster = nearest.search(some, 1)[1][:, 0].copy()
        index.add_core(len(some), *map(faiss.swig_ptr, (some, rows, cluster)))
    return index


def is_due(step: int, every: int) -> bool:
    """Whether the embeddings are copied before the step after this one."""
    if step >= every:
        return step % every == 0
    young = max(1, every // FIRST)
    return step > 0 and step % young == 0 and (step // young).bit_count() == 1


def build_all(embeddings: np.ndarray, seed: int) -> list[faiss.Index]:
    """An index for each expert: (M, N, D)."""
    return [build(items, seed) for items in embeddings]


class CatalogueIndex:
    """One index per expert, rebuilt every R steps behind the run's back."""

    def __init__(self, every: int, seed: int) -> None:
        """Begin without an index; `at_step` builds the first."""
        self.every = every
        self.seed = seed
        self.current: Sequence[faiss.Index] = ()
        self.coming: Future[list[faiss.Index]] | None = None
        self._builder = ThreadPoolExecutor(1, "catalogue-index")

    def at_step(self, step: int, snapshot: Snapshot) -> None:
        """To be called before each step, with the steps done: the last copy's index takes over, the next is begun."""
        if not self.current:
            self.current = build_all(snapshot(), self.seed)
        elif is_due(step, self.every):
            self.current = self.coming.result() if self.coming else self.current
            self.coming = self._builder.submit(build_all, snapshot(), self.seed)

    def search(self, queries: Tensor, count: int) -> Tensor:
        """About the `count` best items of each context, shared out among the experts: (B, M, D) -> (B, count).

        An item that two experts find is there twice; -1 stands where an expert found too few.
        """
        faiss.omp_set_num_threads(1)
        found = [
            torch.from_numpy(index.search(np.ascontiguousarray(queries[:, expert].numpy()), quota)[1])
            for expert, (index, quota) in enumerate(zip(self.current, quotas(count, len(self.current)), strict=True))
            if quota
        ]
        return torch.cat(found, dim=1)

    def tensors(self) -> Mapping[str, Tensor]:
        """What a checkpoint keeps: the bytes of the indexes in use, and of those to come, waited for."""
        coming = self.coming.result() if self.coming else ()
        return {
            f"{name}_{expert}": torch.from_numpy(faiss.serialize_index(index))
            for name, indexes in (("index", self.current), ("coming_index", coming))
            for expert, index in enumerate(indexes)
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what a checkpoint kept."""
        kept: list[list[faiss.Index]] = []
        for name in ("index", "coming_index"):
            own = [key for key in state if key.startswith(f"{name}_")]
            kept.append([deserialize(state[f"{name}_{expert}"].numpy()) for expert in range(len(own))])
        self.current, coming = kept
        if coming:
            self.coming = Future()
            self.coming.set_result(coming)
