"""Index files that are not what the manifest says: always an error, never a crash, a hang or a wrong row."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import faiss
import numpy as np
import pytest

from serving.errors import BundleCorruptError
from serving.index_building import KindName, build_index, write_index
from serving.index_files import KINDS, IndexFacts, file_names, parse_item_index
from serving.selection import Selection

NUM_ITEMS, DIMENSION = 300, 8
SIZES = {"flat": (8, 37), "ivf": (8, 37, 61), "hnsw": (8, 37)}
"""Where a file says how many vectors, floats or clusters there are."""
NAMES: tuple[KindName, ...] = ("flat", "ivf", "hnsw")


def facts(kind: str, num_experts: int = 1) -> IndexFacts:
    return IndexFacts(kind, num_experts, NUM_ITEMS, DIMENSION, effort=4, num_candidates=10)


@cache
def embeddings(num_experts: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((num_experts, NUM_ITEMS, DIMENSION), dtype=np.float32)


@cache
def files(kind: KindName, num_experts: int = 1) -> list[bytes]:
    with TemporaryDirectory() as directory:
        write_index(Path(directory), build_index(kind, embeddings(num_experts)))
        return [(Path(directory) / name).read_bytes() for name in file_names(kind, num_experts)]


def parse(kind: str, *contents: bytes) -> np.ndarray:
    """Parse and use an index; the rows that it finds."""
    index = parse_item_index([np.frombuffer(content, np.uint8) for content in contents], facts(kind, len(contents)))
    queries = embeddings(1)[:, :3].transpose(1, 0, 2)
    index.pick(queries, 20, [Selection.of(excluded=[1, 2])] * 3)
    return np.stack([picked.rows for picked in index.pick(queries, 20)])


@pytest.mark.parametrize("kind", NAMES)
def test_what_is_written_is_read(kind: KindName) -> None:
    contents = files(kind, 3)
    assert len(contents) == (1 if kind == "flat" else 3)
    index = parse_item_index([np.frombuffer(content, np.uint8) for content in contents], facts(kind, 3))
    for expert in range(3):
        assert np.array_equal(index.reconstruct(np.arange(NUM_ITEMS), expert), embeddings(3)[expert])


def test_a_flat_file_is_faisss_own() -> None:
    index = faiss.IndexFlatIP(DIMENSION)
    index.add(embeddings(2).reshape(-1, DIMENSION))
    assert files("flat", 2) == [faiss.serialize_index(index).tobytes()]


@pytest.mark.parametrize("kind", NAMES)
def test_flipped_bytes_are_an_error_or_harmless(kind: KindName) -> None:
    content = files(kind)[0]
    generator = np.random.default_rng(1)
    positions = [*range(0, 400), *generator.integers(len(content), size=400)]
    refused = 0
    for position in positions:
        changed = bytearray(content)
        changed[position] ^= 1 << generator.integers(8) if position > 60 else 0x80
        try:
            rows = parse(kind, bytes(changed))
        except BundleCorruptError:
            refused += 1
        else:
            assert all(len(set(row.tolist())) == 20 for row in rows)
            assert rows.min() >= 0
            assert rows.max() < NUM_ITEMS
    assert refused > 40, "every header is checked"


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("value", [0, 1, NUM_ITEMS + 1, 1 << 31, 1 << 40, (1 << 63) - 1, (1 << 64) - 1])
def test_a_header_that_promises_other_sizes_is_refused(kind: KindName, value: int) -> None:
    content = files(kind)[0]
    for position in SIZES[kind]:
        changed = bytearray(content)
        changed[position : position + 8] = value.to_bytes(8, "little")
        if changed != content:
            with pytest.raises(BundleCorruptError):
                parse(kind, bytes(changed))
    changed = bytearray(content)
    changed[4:8] = (value & 0x7FFFFFFF).to_bytes(4, "little")  # dimension
    with pytest.raises(BundleCorruptError):
        parse(kind, bytes(changed))


@pytest.mark.parametrize("kind", NAMES)
def test_a_cut_or_empty_file_is_refused(kind: KindName) -> None:
    content = files(kind)[0]
    for size in (0, 3, 20, 44, 60, len(content) // 2, len(content) - 1):
        with pytest.raises(BundleCorruptError):
            parse(kind, content[:size])


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("other", [*NAMES, "pq", "l2"])
def test_only_the_manifests_kind_is_read(kind: KindName, other: str) -> None:
    if other == kind:
        return
    if other in KINDS:
        content = files(other)[0]  # type: ignore[arg-type]
    else:
        index = faiss.IndexPQ(DIMENSION, 4, 4) if other == "pq" else faiss.IndexFlatL2(DIMENSION)
        index.train(embeddings(1)[0])
        index.add(embeddings(1)[0])
        content = faiss.serialize_index(index).tobytes()
    with pytest.raises(BundleCorruptError, match=f"the {kind} index cannot be parsed"):
        parse(kind, content)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_values_that_are_no_numbers_are_refused(kind: KindName, value: float) -> None:
    content = files(kind)[0]
    position = content.index(embeddings(1)[0, 7].tobytes())
    with pytest.raises(BundleCorruptError, match="index values"):
        parse(kind, content[:position] + np.float32(value).tobytes() + content[position + 4 :])


def test_a_row_that_is_in_two_clusters_is_refused() -> None:
    index = faiss.deserialize_index(np.frombuffer(files("ivf")[0], np.uint8))
    lists = faiss.downcast_InvertedLists(index.invlists)
    number = next(number for number in range(index.nlist) if lists.list_size(number) > 1)
    rows = faiss.rev_swig_ptr(lists.get_ids(number), lists.list_size(number))
    rows[0] = rows[1]
    with pytest.raises(BundleCorruptError, match="rows in the clusters"):
        parse("ivf", faiss.serialize_index(index).tobytes())


def graph() -> faiss.IndexHNSWFlat:
    return faiss.deserialize_index(np.frombuffer(files("hnsw")[0], np.uint8))


@pytest.mark.parametrize("link", [NUM_ITEMS, -2, (1 << 31) - 1])
def test_a_link_out_of_the_graph_is_refused(link: int) -> None:
    index = graph()
    links = faiss.vector_to_array(index.hnsw.neighbors)
    links[5] = link
    faiss.copy_array_to_vector(links, index.hnsw.neighbors)
    with pytest.raises(BundleCorruptError):
        parse("hnsw", faiss.serialize_index(index).tobytes())


def test_a_link_to_an_item_that_its_level_does_not_have_is_refused() -> None:
    index = graph()
    levels = faiss.vector_to_array(index.hnsw.levels)
    offsets = faiss.vector_to_array(index.hnsw.offsets)
    links = faiss.vector_to_array(index.hnsw.neighbors)
    room = faiss.vector_to_array(index.hnsw.cum_nneighbor_per_level)
    high, low = int(np.flatnonzero(levels > 1)[0]), int(np.flatnonzero(levels == 1)[0])
    links[int(offsets[high]) + int(room[1])] = low
    faiss.copy_array_to_vector(links, index.hnsw.neighbors)
    with pytest.raises(BundleCorruptError, match=r"level of a link|cannot be parsed"):
        parse("hnsw", faiss.serialize_index(index).tobytes())
