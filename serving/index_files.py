"""Index files: FAISS's own, read from verified bytes so that a broken one is an error and never a crash.

Axes: M experts, N items, D embedding dimension.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import faiss
import numpy as np

from esr_trainer.faiss_bytes import deserialize
from serving.errors import BundleCorruptError
from serving.expert_index import Effort, ExpertIndex, FaissExpert, FlatExpert
from serving.index import ItemIndex

FLAT_HEADER = struct.Struct("<4siqqq?iQ")
"""IndexFlatIP in FAISS's format: name, D, vectors, 2 fixed words, trained, metric, then the number of floats."""
FIXED = 1 << 20
"""What FAISS writes into the words that it does not use."""
IVF_QUANTIZER = struct.calcsize("<4siqqq?iQQ")
"""Where the clusters' index begins in an IVF file."""
ALIGNMENT = 64
LARGEST = 1e15
"""What no embedding's value reaches."""


class IndexFacts(NamedTuple):
    """What a manifest says of its index."""

    kind: str
    """A name in KINDS."""
    num_experts: int
    """M."""
    num_items: int
    """N."""
    dimension: int
    """D."""
    effort: int
    """nprobe or efSearch; 0 where there is none."""
    num_candidates: int
    """K that the effort was chosen for."""


def file_names(kind: str, num_experts: int) -> tuple[str, ...]:
    """The files of an index: one for all experts, or one for each."""
    more = range(1, num_experts) if KINDS[kind].file_per_expert else ()
    return ("items.faiss", *(f"items_{expert}.faiss" for expert in more))


def parse_item_index(contents: Sequence[np.ndarray], facts: IndexFacts) -> ItemIndex:
    """An index from the verified bytes of its files, in the order of `file_names`.

    Raises:
        BundleCorruptError: a file is no index of the kind, or not of the size, that the manifest says.
    """
    try:
        experts = tuple(expert for content in contents for expert in KINDS[facts.kind].parse(content, facts))
    except BundleCorruptError:
        raise
    except Exception as error:  # FAISS raises RuntimeError, MemoryError, ...; what it says may quote the server's paths
        raise BundleCorruptError(f"the {facts.kind} index cannot be parsed") from error
    return ItemIndex(facts.kind, experts, facts.num_items, facts.dimension)


def flat_header(dimension: int, vectors: int) -> bytes:
    """The only header that an exact index may have."""
    return FLAT_HEADER.pack(b"IxFI", dimension, vectors, FIXED, FIXED, True, 0, vectors * dimension)


def parse_flat(content: np.ndarray, facts: IndexFacts) -> list[ExpertIndex]:
    """All experts' exact indexes, on the bytes themselves: expert m's vector of item i is number m * N + i."""
    vectors = facts.num_experts * facts.num_items
    check_names("flat", content[:4].tobytes(), b"IxFI")
    check("index vectors", int.from_bytes(content[8:16].tobytes(), "little"), vectors)
    header = flat_header(facts.dimension, vectors)
    check_names("flat", content[: len(header)].tobytes(), header)
    check("index bytes", len(content), len(header) + 4 * vectors * facts.dimension)
    floats = np.require(content[len(header) :].view(np.float32), requirements="A")
    check_values(floats)
    blocks = floats.reshape(facts.num_experts, facts.num_items, facts.dimension)
    return [FlatExpert(block) for block in blocks]


def parse_ivf(content: np.ndarray, facts: IndexFacts) -> list[ExpertIndex]:
    """One expert's clustered index; every row is in exactly one cluster."""
    check_names("ivf", content[:4].tobytes() + content[IVF_QUANTIZER : IVF_QUANTIZER + 4].tobytes(), b"IwFlIxFI")
    index = deserialize(content)
    check_facts(index, faiss.IndexIVFFlat, facts)
    quantizer = faiss.downcast_index(index.quantizer)
    check("class of the clusters", type(quantizer), faiss.IndexFlatIP)
    check("clusters", (quantizer.ntotal, quantizer.d), (index.nlist, facts.dimension))
    lists = faiss.downcast_InvertedLists(index.invlists)
    check("class of the lists", type(lists), faiss.ArrayInvertedLists)
    check("lists", (lists.nlist, lists.code_size, index.code_size), (index.nlist, *[4 * facts.dimension] * 2))
    check("direct map", index.direct_map.type, faiss.DirectMap.NoMap)
    rows = np.concatenate([rows_of(lists, number) for number in range(index.nlist)])
    check("rows in the clusters", np.array_equal(np.sort(rows), np.arange(facts.num_items)), True)
    for number in range(index.nlist):
        if size := lists.list_size(number) * lists.code_size:
            check_values(faiss.rev_swig_ptr(lists.get_codes(number), size).view(np.float32))
    index.make_direct_map()
    return [ivf_expert(index, facts.effort, facts.num_candidates)]


def ivf_expert(index: faiss.IndexIVFFlat, nprobe: int, num_candidates: int) -> FaissExpert:
    """A clustered index that looks into the nprobe nearest clusters for K items.

    For 10 K it takes 2 to 3 times as many to find the same share (measured: 50,000 items, K = 100).
    """
    effort = Effort(nprobe, num_candidates, growth=0.5, most=index.nlist)
    return FaissExpert(index, index.d, effort, lambda nprobe, rows: faiss.SearchParametersIVF(nprobe=nprobe, sel=rows))


def rows_of(lists: faiss.InvertedLists, number: int) -> np.ndarray:
    """The rows of one cluster, a view."""
    size = lists.list_size(number)
    rows: np.ndarray = faiss.rev_swig_ptr(lists.get_ids(number), size) if size else np.empty(0, np.int64)
    return rows


def parse_hnsw(content: np.ndarray, facts: IndexFacts) -> list[ExpertIndex]:
    """One expert's graph, with one dimension more than the embeddings; links lead to items of their level."""
    check_names("hnsw", content[:4].tobytes(), b"IHNf")
    index = deserialize(content)
    facts = facts._replace(dimension=facts.dimension + 1)
    check_facts(index, faiss.IndexHNSWFlat, facts)
    storage = faiss.downcast_index(index.storage)
    check("metric of the vectors", storage.metric_type, faiss.METRIC_INNER_PRODUCT)
    check("vectors", (storage.ntotal, storage.d), (facts.num_items, facts.dimension))
    check_values(faiss.rev_swig_ptr(storage.get_xb(), facts.num_items * facts.dimension))
    check_graph(index.hnsw, facts.num_items)
    return [hnsw_expert(index, facts.effort, facts.num_candidates)]


def check_graph(hnsw: faiss.HNSW, num_items: int) -> None:
    """Check that a walk on the graph reads nothing but the graph.

    Raises:
        BundleCorruptError: a link, a level or an offset leads out of it.
    """
    vector = faiss.vector_to_array
    levels, offsets, links = vector(hnsw.levels), vector(hnsw.offsets).astype(np.int64), vector(hnsw.neighbors)
    room = vector(hnsw.cum_nneighbor_per_level).astype(np.int64)
    check("levels", (len(levels), len(offsets)), (num_items, num_items + 1))
    check("room of a level", bool(room[0] == 0 and (np.diff(room) >= 0).all() and room[-1] <= len(links)), True)
    check("level", bool(levels.min() >= 1 and levels.max() < len(room)), True)
    check("top level", hnsw.max_level, int(levels.max()) - 1)
    check("entry point", bool(0 <= hnsw.entry_point < num_items and levels[hnsw.entry_point] == levels.max()), True)
    check("offsets", bool(offsets[0] == 0 and (np.diff(offsets) == room[levels]).all()), True)
    check("links", (int(offsets[-1]), bool((links >= -1).all() and (links < num_items).all())), (len(links), True))
    for level in range(1, int(levels.max())):
        begins = offsets[:-1][levels > level]
        slots = begins[:, None] + np.arange(room[level], room[level + 1])
        check("level of a link", bool((levels[links[slots][links[slots] >= 0]] > level).all()), True)


def hnsw_expert(index: faiss.IndexHNSWFlat, ef_search: int, num_candidates: int) -> FaissExpert:
    """A graph that is walked with a queue of efSearch items for K items.

    For 10 K it takes 5 times as long a queue, or more (measured: 50,000 items, K = 100).
    """
    effort = Effort(ef_search, num_candidates, growth=1.0, most=index.ntotal)
    return FaissExpert(
        index, index.d - 1, effort, lambda ef_search, rows: faiss.SearchParametersHNSW(efSearch=ef_search, sel=rows)
    )


def check_names(kind: str, found: bytes, expected: bytes) -> None:
    """Refuse a file before FAISS sees it, if it does not begin as an index of the kind and size does."""
    if found != expected:
        raise BundleCorruptError(f"the {kind} index cannot be parsed: it does not begin as one of the manifest's size")


def check_values(floats: np.ndarray) -> None:
    """Refuse embeddings that are not numbers, or whose products would overflow."""
    largest = float(np.abs(floats).max())
    if not largest < LARGEST:
        raise BundleCorruptError(f"index values: the largest is {largest:.2g}, not below {LARGEST:g}")


def check_facts(index: faiss.Index, kind: type, facts: IndexFacts) -> None:
    """Check an index's class, size and metric."""
    check("index class", type(index), kind)
    check("index vectors", index.ntotal, facts.num_items)
    check("index dimension", index.d, facts.dimension)
    check("index metric", index.metric_type, faiss.METRIC_INNER_PRODUCT)
    check("index trained", index.is_trained, True)


def check(name: str, found: Any, expected: Any) -> None:
    """Refuse an index whose part is not what it must be."""
    if found != expected:
        said = getattr(found, "__name__", found), getattr(expected, "__name__", expected)
        raise BundleCorruptError(f"{name}: {said[0]}, not {said[1]} as the manifest says")


class Kind(NamedTuple):
    """How a kind of index is kept."""

    parse: Callable[[np.ndarray, IndexFacts], list[ExpertIndex]]
    """One file's bytes -> the experts in it."""
    file_per_expert: bool
    """Whether each expert has a file of its own."""


KINDS: Mapping[str, Kind] = {
    "flat": Kind(parse_flat, False),
    "ivf": Kind(parse_ivf, True),
    "hnsw": Kind(parse_hnsw, True),
}
"""Kinds of index by name."""
