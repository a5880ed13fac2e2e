"""Build an index of the items, choose how hard it searches, and measure what it finds.

Axes: Q queries, M experts, N items, D embedding dimension, K candidates, A added items.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import faiss
import numpy as np

from esr_trainer.command_line import UsageError, note
from serving.expert_index import FlatExpert
from serving.index import ItemIndex, Picked
from serving.index_files import file_names, flat_header, hnsw_expert, ivf_expert, rows_of

KindName = Literal["flat", "ivf", "hnsw"]
IndexName = Literal["auto", "flat", "ivf", "hnsw"]

EXACT_UP_TO = 100_000
"""Items up to which `auto` is exact."""
WANTED_RECALL = 0.98
"""The share of the exact candidates that the search parameters are chosen for."""
LINKS = 32
"""Links of an item in a graph, on each level; twice as many on the lowest."""
EF_CONSTRUCTION = 100
POINTS_PER_CLUSTER = 64
"""Items that k-means sees, per cluster."""
ITERATIONS = 10
"""Rounds of k-means."""
SEED = 20
LARGE = 200_000
"""Items from which building says how far it is."""


class BuiltIndex(NamedTuple):
    """An index and what it is made of."""

    kind: KindName
    """A name in index_files.KINDS."""
    embeddings: np.ndarray
    """The items', (M, N, D) float32."""
    graphs: tuple[faiss.Index, ...]
    """FAISS's, one per expert; none for a flat one."""
    effort: int = 0
    """nprobe or efSearch; 0 where there is none."""
    recall: float = 1.0
    """What it finds of the exact candidates of the queries that it was measured with."""

    @property
    def nprobe(self) -> int | None:
        """Clusters that are read, of an ivf index."""
        return self.effort if self.kind == "ivf" else None

    @property
    def ef_search(self) -> int | None:
        """Length of the queue, of an hnsw index."""
        return self.effort if self.kind == "hnsw" else None

    @property
    def most(self) -> int:
        """The largest effort that makes a difference."""
        return min(int(index.nlist if self.kind == "ivf" else index.ntotal) for index in self.graphs)

    def searching(self, num_candidates: int) -> ItemIndex:
        """The index that searches with this effort for K candidates."""
        if self.kind == "flat":
            return exact_index(self.embeddings)
        expert = {"ivf": ivf_expert, "hnsw": hnsw_expert}[self.kind]
        experts = tuple(expert(index, self.effort, num_candidates) for index in self.graphs)
        return ItemIndex(self.kind, experts, *self.embeddings.shape[1:])


def choose_kind(name: IndexName, num_items: int) -> KindName:
    """The kind of index for N items: exact while that is fast, then the one that measured best."""
    if name != "auto":
        return name
    return "flat" if num_items <= EXACT_UP_TO else "ivf"


def build_ivf(embeddings: np.ndarray) -> faiss.Index:
    """One expert's items in 4 sqrt(N) clusters of near items, searched by the product with the centres: (N, D).

    FAISS's own clusters for products have centres of length 1; clusters by distance keep an item's length and find more
    (measured: 1,000,000 x 64, k = 100, 128 clusters read: recall 0.95 instead of 0.76).
    """
    num_items, dimension = embeddings.shape
    nlist = max(1, min(int(4 * num_items**0.5), num_items // 2))
    clusters = faiss.Kmeans(
        dimension,
        nlist,
        niter=ITERATIONS,
        seed=SEED,
        max_points_per_centroid=POINTS_PER_CLUSTER,
        min_points_per_centroid=1,
    )
    clusters.train(embeddings)
    quantizer = faiss.IndexFlatIP(dimension)
    quantizer.add(clusters.centroids)
    index = faiss.IndexIVFFlat(quantizer, dimension, nlist, faiss.METRIC_INNER_PRODUCT)
    index.is_trained = True
    add_to_clusters(index, embeddings, np.arange(num_items))
    return index


def add_to_clusters(index: faiss.IndexIVFFlat, items: np.ndarray, rows: np.ndarray) -> None:
    """Put items into the cluster with the nearest centre: (A, D), (A,)."""
    centres = faiss.IndexFlatL2(index.d)
    centres.add(index.quantizer.reconstruct_n(0, index.nlist))
    for start in range(0, len(items), LARGE):
        some, their_rows = np.ascontiguousarray(items[start : start + LARGE]), rows[start : start + LARGE]
        nearest = centres.search(some, 1)[1][:, 0].copy()
        index.add_core(len(some), *map(faiss.swig_ptr, (some, their_rows, nearest)))
        if len(items) > LARGE:
            note(f"index: {start + len(some):,} of {len(items):,} items are in their cluster")


def build_hnsw(embeddings: np.ndarray) -> faiss.Index:
    """One expert's items in a graph: (N, D).

    One more dimension gives every item the same length and leaves its product with a query, which has 0 there, as it is
    (Bachrach et al., RecSys 2014): links by inner product alone lead to the long items and never to the others.
    """
    squares = np.einsum("nd,nd->n", embeddings, embeddings)
    embeddings = np.column_stack([embeddings, np.sqrt(squares.max() - squares)])
    index = faiss.IndexHNSWFlat(embeddings.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = EF_CONSTRUCTION
    for start in range(0, len(embeddings), LARGE):
        index.add(embeddings[start : start + LARGE])
        if len(embeddings) > LARGE:
            note(f"index: {min(start + LARGE, len(embeddings)):,} of {len(embeddings):,} items linked")
    return index


INDEXES: Mapping[str, Callable[[np.ndarray], faiss.Index]] = {"ivf": build_ivf, "hnsw": build_hnsw}
"""Approximate kinds by name: one expert's embeddings (N, D) -> index; `flat` needs no building."""


def build_index(kind: KindName, embeddings: np.ndarray) -> BuiltIndex:
    """Build one index per expert, on all cores; an approximate one searches with the least effort until `tune`.

    One index of all experts' items, searched within an expert's rows, has to read every expert's items to find one's
    (measured: 4 x 10,000 items, K = 100: 0.61 ms at recall 0.98 with an index each, 0.85 ms at 0.975 with one).

    Args:
        kind: flat, or a name in INDEXES.
        embeddings: (M, N, D) float32.

    Raises:
        UsageError: an embedding is not finite.
    """
    if not np.isfinite(embeddings).all():
        raise UsageError("index: an item's embedding is not finite")
    embeddings = np.ascontiguousarray(embeddings, np.float32)
    if kind == "flat":
        return BuiltIndex(kind, embeddings, ())
    graphs = []
    for expert, items in enumerate(embeddings, start=1):
        if len(items) > LARGE:
            note(f"index: {kind} of expert {expert} of {len(embeddings)}, {len(items):,} items")
        graphs.append(INDEXES[kind](items))
    return with_reconstruction(BuiltIndex(kind, embeddings, tuple(graphs), effort=1))


def with_reconstruction(built: BuiltIndex) -> BuiltIndex:
    """The same, able to give an item's embedding back."""
    for index in built.graphs if built.kind == "ivf" else ():
        index.make_direct_map()
    return built


def tune(built: BuiltIndex, queries: np.ndarray, num_candidates: int, min_recall: float) -> BuiltIndex:
    """Search with the smallest effort that finds WANTED_RECALL of the exact candidates, or the largest there is.

    Args:
        built: an index.
        queries: (Q, M, D), of other contexts than those that it is measured by.
        num_candidates: K.
        min_recall: what the index will be refused below; the wanted recall keeps above it.
    """
    if built.kind == "flat":
        return built
    exact = exact_index(built.embeddings).pick(queries, num_candidates)
    wanted = max(WANTED_RECALL, (1 + min_recall) / 2)
    low, high = 0, 1

    def enough(effort: int) -> bool:
        found = built._replace(effort=effort).searching(num_candidates).pick(queries, num_candidates)
        return recall(found, exact) >= wanted

    while high < built.most and not enough(high):
        low, high = high, min(2 * high, built.most)
    while high - low > max(1, low // 8):  # within an eighth of the smallest
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return built._replace(effort=high)


def measured(built: BuiltIndex, queries: np.ndarray, num_candidates: int, min_recall: float) -> BuiltIndex:
    """Measure recall@K against exact search, and refuse an index that finds too little.

    Args:
        built: an index.
        queries: (Q, M, D).
        num_candidates: K.
        min_recall: the least that will do.

    Raises:
        UsageError: recall is below `min_recall`.
    """
    if built.kind == "flat":
        return built
    exact = exact_index(built.embeddings).pick(queries, num_candidates)
    found = recall(built.searching(num_candidates).pick(queries, num_candidates), exact)
    if found < min_recall:
        raise UsageError(
            f"index ({built.kind}): recall@{num_candidates} on the golden queries is {found:.4f}, below min-recall "
            f"({min_recall:g})"
        )
    return built._replace(recall=found)


def exact_index(embeddings: np.ndarray) -> ItemIndex:
    """The exact index of some embeddings, (M, N, D)."""
    return ItemIndex("flat", tuple(FlatExpert(items) for items in embeddings), *embeddings.shape[1:])


def recall(found: Sequence[Picked], exact: Sequence[Picked]) -> float:
    """The mean share of an exact answer's items that the found one holds, whatever their order: Q each."""
    return float(np.mean([np.isin(right.rows, answer.rows).mean() for answer, right in zip(found, exact, strict=True)]))


def write_index(directory: Path, built: BuiltIndex) -> None:
    """Write an index's files."""
    num_experts, num_items, dimension = built.embeddings.shape
    names = file_names(built.kind, num_experts)
    if built.kind == "flat":
        with (directory / names[0]).open("wb") as file:
            file.write(flat_header(dimension, num_experts * num_items))
            file.write(built.embeddings.data)
        return
    for name, index in zip(names, built.graphs, strict=True):
        if built.kind == "ivf":
            index.set_direct_map_type(faiss.DirectMap.NoMap)
        faiss.write_index(index, str(directory / name))
    with_reconstruction(built)


def with_other_items(parent: BuiltIndex, kept: np.ndarray, added: np.ndarray) -> BuiltIndex:
    """The index of a changed catalogue; clusters stay as they were trained, a graph is built anew.

    Args:
        parent: the index so far; it is changed, and of no more use.
        kept: its rows that stay, ascending; they become rows 0, 1, ...
        added: new items' embeddings, (M, A, D); they come last.
    """
    embeddings = np.concatenate([parent.embeddings[:, kept], added], axis=1)
    if parent.kind != "ivf":
        return build_index(parent.kind, embeddings)
    new_rows = np.arange(len(kept), embeddings.shape[1])
    for index, items in zip(parent.graphs, embeddings, strict=True):
        index.set_direct_map_type(faiss.DirectMap.NoMap)
        index.remove_ids(faiss.IDSelectorBatch(np.setdiff1d(np.arange(index.ntotal), kept)))
        lists = faiss.downcast_InvertedLists(index.invlists)
        for number in range(index.nlist):
            rows = rows_of(lists, number)
            rows[:] = np.searchsorted(kept, rows)
        add_to_clusters(index, items[len(kept) :], new_rows)
    return with_reconstruction(parent._replace(embeddings=embeddings))
