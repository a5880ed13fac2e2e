"""ENVIRONMENTS: the worlds an ESR can learn in, generated or read from a file whose content says which it is."""

import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from esr_trainer import kuairec, logged_interactions, synthetic
from esr_trainer.command_line import UsageError
from esr_trainer.whole_directory import sha256
from esr_trainer.world import World, check_rows, check_size


class Shape(NamedTuple):
    """How large a generated world is."""

    contexts: int
    """C."""
    items: int
    """N."""


class Generator(NamedTuple):
    """A world that needs no file."""

    shape: Shape
    """Its own, where the settings name none."""
    generate: Callable[[int, int, int], World]
    """C, N, world seed -> world."""
    is_pairwise: bool = False
    """Whether a world without matrices can be made."""


ENVIRONMENTS: Mapping[str, Generator | None] = {
    "kuairec": Generator(Shape(1411, 3327), kuairec.simulated_world),
    "synthetic": Generator(Shape(1000, 1000), synthetic.synthetic_world, is_pairwise=True),
    "interactions": None,
}
"""Worlds by name, and how each is generated; None where only a file can tell."""

ARCHIVES: tuple[tuple[frozenset[str], Callable[[Mapping[str, np.ndarray], str], World]], ...] = (
    (frozenset({"gt2_bits", "user_id", "video_id"}), kuairec.binary_world),
    (frozenset({"watch_ratio_milli", "observed_bits", "user_id", "video_id"}), kuairec.semisynthetic_world),
    (frozenset(synthetic.ARRAYS), synthetic.published_world),
)
"""npz files, known by the arrays they hold."""


def open_world(
    environment: str | None, data: Path | None, seed: int, contexts: int | None = None, items: int | None = None
) -> World:
    """Read the world of a file, or generate one.

    Args:
        environment: a name in ENVIRONMENTS, or None to take the file's (without a file: kuairec).
        data: a KuaiRec or synthetic file or a log, or None to generate.
        seed: decides a generated world, and the fit of a log's.
        contexts: C of a generated world, or None for its own.
        items: N of a generated world, or None for its own.

    Raises:
        UsageError: the file is missing, malformed or of another environment, it comes with a shape, or the world is
            too large.
    """
    if data is None:
        generator = ENVIRONMENTS[environment or "kuairec"]
        if generator is None:
            raise UsageError(f"environment ({environment}) is made from a file: name it with --data")
        shape = Shape(contexts or generator.shape.contexts, items or generator.shape.items)
        (check_rows if generator.is_pairwise else check_size)(*shape)
        return generator.generate(*shape, seed)
    for name, count in (("contexts", contexts), ("items", items)):
        if count is not None:
            raise UsageError(f"{name} ({count}) is for generated worlds: data ({data}) has a shape of its own")
    world = read_world(data, seed)
    if environment not in (None, world.environment):
        raise UsageError(f"environment ({environment}) clashes with data ({data}), which holds {world.environment}")
    return world


def read_world(path: Path, seed: int = 0) -> World:
    """Read a file; its npz keys or CSV header decide the world. The seed decides the fit of a log's."""
    if not path.is_file():
        raise UsageError(f"data ({path}) is not a file")
    with path.open("rb") as file:
        head = file.read(4096)
    if not head.startswith(b"PK"):
        header = tuple(head.decode(errors="replace").partition("\n")[0].strip().split(","))
        if set(kuairec.CSV_COLUMNS) <= set(header):
            return kuairec.original_world(path, sha256(path))
        columns = logged_interactions.COLUMNS
        if head.startswith(b"PAR1") or set(columns) & set(header):
            return logged_interactions.logged_world(path, sha256(path), seed)
        raise UsageError(
            f"data ({path}) is no npz, and no CSV or Parquet file with the columns {', '.join(columns)} "
            f"or {', '.join(kuairec.CSV_COLUMNS)}"
        )
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError, NotImplementedError, zlib.error) as error:
        raise UsageError(f"data ({path}) cannot be read as npz: {error}") from error
    for names, world in ARCHIVES:
        if names <= arrays.keys():
            try:
                return world(arrays, sha256(path))
            except (ValueError, IndexError, RuntimeError, TypeError) as error:
                raise UsageError(f"data ({path}): its arrays do not fit together: {error}") from error
    raise UsageError(f"data ({path}) holds the arrays {', '.join(sorted(arrays))}, which are no known world")
