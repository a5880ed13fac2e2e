"""What each kind of index costs and finds, on stand-in embeddings or on a bundle's own, as one table.

Axes: M experts, N items, Q queries, D embedding dimension, k items asked for.
"""

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np

from esr_trainer.command_line import UsageError, note
from serving.errors import ServingError
from serving.index import ItemIndex
from serving.index_building import BuiltIndex, KindName, build_index, exact_index, recall, tune, write_index
from serving.retriever import Retriever

DIMENSION = 64
NUM_RETRIEVED = 100
"""k."""
BATCH = 64
TUNING, MEASURING = 256, 500
"""Queries that choose the effort, and queries that are measured: others."""
CLUSTERS = 1_000
STAND_IN = (
    "stand-in for trained embeddings: 1,000 clusters, half of the variance within them, the j-th direction's standard "
    "deviation falling as j^-1/2, lognormal(0, 0.2) lengths; queries from the same clusters"
)


class Subject(NamedTuple):
    """What is searched, and for whom."""

    name: str
    embeddings: np.ndarray
    """Of the items, (M, N, D) float32."""
    tuning: np.ndarray
    """Queries that choose the effort, (Q, M, D)."""
    queries: np.ndarray
    """Others, that are measured."""


class Measured(NamedTuple):
    """One kind of index of one size."""

    items: int
    """N."""
    kind: str
    build_seconds: float
    """On one thread, without the choice of the effort."""
    megabytes: float
    """Its files."""
    effort: int
    """nprobe or efSearch."""
    milliseconds: float
    """Median of one query, one thread."""
    milliseconds_batched: float
    """Median per query in batches of 64, one thread."""
    recall: float
    """recall@100 against exact search."""


def stand_in_embeddings(
    num_items: int, num_queries: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Items (1, N, D) and queries (Q, 1, D) with the structure that STAND_IN names; float32."""
    scale = np.arange(1, DIMENSION + 1, dtype=np.float32) ** -0.5
    centres = generator.standard_normal((CLUSTERS, DIMENSION), dtype=np.float32)

    def draw(count: int) -> np.ndarray:
        points = centres[generator.integers(CLUSTERS, size=count)]
        points += generator.standard_normal((count, DIMENSION), dtype=np.float32)
        points *= scale * generator.lognormal(0, 0.2, (count, 1)).astype(np.float32)
        return points

    return draw(num_items)[None], draw(num_queries)[:, None]


def stand_in(num_items: int, seed: int) -> Subject:
    """Stand-in embeddings of a catalogue."""
    items, queries = stand_in_embeddings(num_items, TUNING + MEASURING, np.random.default_rng(seed))
    return Subject(STAND_IN, items, queries[:TUNING], queries[TUNING:])


def of_bundle(root: Path, seed: int) -> Subject:
    """The items of a bundle root's highest version, and its contexts in random order; a third of few tune.

    Raises:
        UsageError: there is no such bundle, or it cannot be loaded.
    """
    try:
        retriever = Retriever.open(root)
    except ServingError as error:
        raise UsageError(f"bundle ({root}) cannot be used: {error}") from error
    index, contexts = retriever.bundle.index, len(retriever.bundle.context_ids)
    rows = np.arange(index.num_items)
    items = np.stack([index.reconstruct(rows, expert) for expert in range(len(index.experts))])
    chosen = np.random.default_rng(seed).permutation(contexts)[: TUNING + MEASURING]
    queries = retriever.contexts.embed(chosen)
    cut = min(TUNING, len(queries) // 3)
    return Subject(f"{retriever.bundle.manifest.model_id}, trained", items, queries[:cut], queries[cut:])


def measure(kind: KindName, subject: Subject) -> Measured:
    """Build, tune and time one index."""
    faiss.omp_set_num_threads(1)
    queries, start = subject.queries, time.perf_counter()
    built = build_index(kind, subject.embeddings)
    seconds = time.perf_counter() - start
    built = tune(built, subject.tuning, NUM_RETRIEVED, min_recall=0.95)
    index = built.searching(NUM_RETRIEVED)
    exact = exact_index(subject.embeddings).pick(queries, NUM_RETRIEVED)
    batches = [queries[place : place + BATCH] for place in range(0, len(queries), BATCH)]
    return Measured(
        items=subject.embeddings.shape[1],
        kind=kind,
        build_seconds=round(seconds, 2),
        megabytes=round(size_of(built) / 1e6, 1),
        effort=built.effort,
        milliseconds=milliseconds(index, [queries[place : place + 1] for place in range(len(queries))]),
        milliseconds_batched=milliseconds(index, batches[:-1] or batches),  # the last one is a smaller one
        recall=round(recall(index.pick(queries, NUM_RETRIEVED), exact), 4),
    )


def size_of(built: BuiltIndex) -> int:
    """Bytes of an index's files."""
    with tempfile.TemporaryDirectory() as directory:
        write_index(Path(directory), built)
        return sum(path.stat().st_size for path in Path(directory).iterdir())


def milliseconds(index: ItemIndex, batches: Sequence[np.ndarray]) -> float:
    """Median time per query, after one round to warm up: batches of (B, 1, D)."""
    times = []
    for batch in [*batches[:10], *batches]:
        start = time.perf_counter()
        index.pick(batch, NUM_RETRIEVED)
        times.append((time.perf_counter() - start) / len(batch))
    return round(1000 * statistics.median(times[min(len(batches), 10) :]), 4)


def bench(subjects: Iterable[Subject], kinds: Sequence[KindName]) -> tuple[str, list[Measured]]:
    """Measure every kind for every subject: the last one's name, and the rows."""
    table = []
    for subject in subjects:
        for kind in kinds:
            note(f"bench-index: {kind}, {subject.embeddings.shape[1]:,} items")
            table.append(measure(kind, subject))
    return subject.name, table


def machine() -> str:
    """What the times were taken on."""
    return f"{platform.machine()}, {os.cpu_count()} cores, one used; faiss {faiss.__version__}, numpy {np.__version__}"


def write_rows(path: Path, about: Mapping[str, Any], measured: Sequence[Measured]) -> None:
    """Write rows as JSON; those of other sizes and kinds that the file holds stay, if they were measured alike."""
    rows = {(row.items, row.kind): row for row in measured}
    if path.exists():
        held = json.loads(path.read_text())
        if all(held[name] == value for name, value in about.items()):
            rows = {(row["items"], row["kind"]): Measured(**row) for row in held["rows"]} | rows
    table = [rows[key]._asdict() for key in sorted(rows)]
    path.write_text(json.dumps({**about, "rows": table}, indent=1) + "\n")
