"""Directories that are there whole or not at all: a temporary name, fsync, rename, and a SHA-256 of every file."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".unfinished-"
"""Prefix of a directory that is being written; one that a killed process left is removed by the next writer."""


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Give a temporary directory to fill; it becomes `target` when the block ends without an error.

    Raises:
        FileExistsError: `target` is already there and not empty.
    """
    temporary = target.parent / f"{TEMPORARY}{target.name}-{os.getpid()}"
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            fsync(path)
        try:
            temporary.rename(target)
        except OSError as error:
            raise FileExistsError(f"{target} is already there") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync(target.parent)


def fsync(path: Path) -> None:
    """Have the disk hold a file, or a directory's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_unfinished(parent: Path) -> None:
    """Remove what killed writers left in a directory that nobody else writes to now."""
    for leftover in parent.glob(f"{TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
