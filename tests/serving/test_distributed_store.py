"""A vector store of several processes takes the place of FAISS behind the same retriever (docs/scale.md)."""

import dataclasses
import multiprocessing
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from serving import Query, Retriever
from serving.expert_index import ExpertIndex, FlatExpert
from serving.selection import EVERYTHING, Selection

NODES = 3


def node(embeddings: np.ndarray, client: Connection) -> None:
    """A process that holds some rows of one expert's items, and answers until it is told no more."""
    items = FlatExpert(embeddings)
    while (call := client.recv()) is not None:
        name, *arguments = call
        client.send(getattr(items, name)(*arguments))


class Store:
    """The items under one expert, in contiguous parts that other processes hold: an ExpertIndex."""

    def __init__(self, embeddings: np.ndarray) -> None:
        """Start the processes."""
        self.starts = np.linspace(0, len(embeddings), NODES + 1).astype(int)
        self.nodes, self.processes = [], []
        spawn = multiprocessing.get_context("spawn")
        for begin, end in zip(self.starts, self.starts[1:], strict=False):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=node, args=(embeddings[begin:end], theirs), daemon=True)
            process.start()
            self.nodes.append(ours)
            self.processes.append(process)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Each row from the process that holds it."""
        holder = np.searchsorted(self.starts, rows, side="right") - 1
        for number, connection in enumerate(self.nodes):
            connection.send(("vectors", rows[holder == number] - self.starts[number]))
        parts = [connection.recv() for connection in self.nodes]
        found = np.empty((len(rows), parts[0].shape[1]), np.float32)
        for number, part in enumerate(parts):
            found[holder == number] = part
        return found

    def nearest(self, queries: np.ndarray, k: int, selections: Sequence[Selection]) -> list[np.ndarray]:
        """The union of the parts' best rows: the best of all are among them."""
        for number, connection in enumerate(self.nodes):
            own = [part_of(selection, *self.starts[number : number + 2]) for selection in selections]
            connection.send(("nearest", queries, k, own))
        parts = [connection.recv() for connection in self.nodes]
        return [
            np.concatenate([rows + start for rows, start in zip(of_query, self.starts, strict=False)])
            for of_query in zip(*parts, strict=True)
        ]

    def close(self) -> None:
        """End the processes."""
        for connection, process in zip(self.nodes, self.processes, strict=True):
            connection.send(None)
            process.join(10)
            assert process.exitcode == 0


def part_of(selection: Selection, begin: int, end: int) -> Selection:
    """What a selection leaves of the rows from begin to end - 1, counted from begin."""
    if selection is EVERYTHING:
        return EVERYTHING

    def inside(rows: np.ndarray) -> np.ndarray:
        return rows[(rows >= begin) & (rows < end)] - begin

    return Selection(inside(selection.excluded), None if selection.allowed is None else inside(selection.allowed))


@pytest.fixture
def stores(bundles: Path) -> Iterator[tuple[Retriever, Retriever]]:
    """The retriever of a bundle, and another that asks stores instead of the bundle's own index."""
    ours, theirs = Retriever.open(bundles), Retriever.open(bundles)
    index = ours.bundle.index
    rows = np.arange(index.num_items)
    experts: tuple[ExpertIndex, ...] = tuple(Store(index.reconstruct(rows, m)) for m in range(len(index.experts)))
    theirs.bundle = dataclasses.replace(theirs.bundle, index=dataclasses.replace(index, kind="store", experts=experts))
    yield ours, theirs
    for expert in experts:
        assert isinstance(expert, Store)
        expert.close()


def test_the_retriever_gives_the_same_answers_from_a_store_of_several_processes(
    stores: tuple[Retriever, Retriever],
) -> None:
    ours, theirs = stores
    best = ours.retrieve("17", 20).item_ids
    queries = [
        *(Query(str(context), 15) for context in range(40)),
        Query("17", 12, excluded=best[::2]),
        Query("17", 9, allowed=best[3:]),
        Query("17", 5, allowed=best, excluded=best[:4]),
    ]
    assert theirs.answer(queries) == ours.answer(queries)
