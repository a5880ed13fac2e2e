"""ENVIRONMENTS: the worlds an ESR can learn in, generated or read from a file whose content says which it is."""

import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from esr_trainer import kuairec, synthetic
from esr_trainer.command_line import UsageError
from esr_trainer.whole_directory import sha256
from esr_trainer.world import World, check_size


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


ENVIRONMENTS: Mapping[str, Generator] = {
    "kuairec": Generator(Shape(1411, 3327), kuairec.simulated_world),
    "synthetic": Generator(Shape(1000, 1000), synthetic.synthetic_world),
}
"""Generated worlds by name."""

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
        data: a KuaiRec or synthetic file, or None to generate.
        seed: decides a generated world.
        contexts: C of a generated world, or None for its own.
        items: N of a generated world, or None for its own.

    Raises:
        UsageError: the file is missing, malformed or of another environment, it comes with a shape, or the world is
            too large.
    """
    if data is None:
        shape, generate = ENVIRONMENTS[environment or "kuairec"]
        shape = Shape(contexts or shape.contexts, items or shape.items)
        check_size(*shape)
        return generate(*shape, seed)
    for name, count in (("contexts", contexts), ("items", items)):
        if count is not None:
            raise UsageError(f"{name} ({count}) is for generated worlds: data ({data}) has a shape of its own")
    world = read_world(data)
    if environment not in (None, world.environment):
        raise UsageError(f"environment ({environment}) clashes with data ({data}), which holds {world.environment}")
    return world


def read_world(path: Path) -> World:
    """Read a file; its npz keys or CSV header decide the world."""
    if not path.is_file():
        raise UsageError(f"data ({path}) is not a file")
    with path.open("rb") as file:
        head = file.read(4096)
    if not head.startswith(b"PK"):
        header = tuple(head.decode(errors="replace").partition("\n")[0].strip().split(","))
        missing = [column for column in kuairec.CSV_COLUMNS if column not in header]
        if missing:
            raise UsageError(
                f"data ({path}) is neither an npz nor a CSV with the columns {', '.join(kuairec.CSV_COLUMNS)}"
            )
        return kuairec.original_world(path, sha256(path))
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
