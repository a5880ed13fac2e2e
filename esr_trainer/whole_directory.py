"""Directories and files that are there whole or not at all (a temporary name, fsync, rename), and SHA-256 of files."""

import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from esr_trainer.command_line import UsageError

TEMPORARY = ".unfinished-"
"""Prefix of a directory that is being written; one that a killed process left is removed by the next writer."""


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Give a temporary directory to fill; it becomes `target` when the block ends without an error.

    Raises:
        FileExistsError: `target` is already there and not empty.
        OSError: it cannot be written.
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
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise FileExistsError(f"{target} is already there") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync(target.parent)


@contextmanager
def file_written_whole(target: Path) -> Iterator[BinaryIO]:
    """Give a temporary file to write to; it becomes `target` when the block ends without an error.

    It is open already, for a writer whose threads outlive its error could create a file by name after it was removed.

    Raises:
        FileExistsError: `target` is already there.
    """
    temporary = target.parent / f"{TEMPORARY}{target.name}-{os.getpid()}"
    already = FileExistsError(errno.EEXIST, "is already there", str(target))
    if target.exists():
        raise already
    try:
        try:
            file = temporary.open("xb")
        except OSError as error:
            error.filename = str(target)
            raise
        with file:
            yield file
        fsync(temporary)
        try:
            os.link(temporary, target)  # a rename would replace what came meanwhile
        except FileExistsError:
            raise already from None
    finally:
        temporary.unlink(missing_ok=True)
    fsync(target.parent)


@contextmanager
def sole_writer(directory: Path, option: str = "out") -> Iterator[None]:
    """Hold the directory of an option for one writer; the lock goes with the process, a killed one leaves nothing.

    Raises:
        UsageError: another process holds it.
    """
    descriptor = os.open(directory / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"{option} ({directory}): another process is writing there") from error
        yield
    finally:
        os.close(descriptor)


def numbered(parent: Path) -> list[int]:
    """The positive integers, written without leading zeros, that name entries of a directory."""
    return [int(path.name) for path in parent.glob("*") if re.fullmatch(r"[1-9][0-9]*", path.name)]


@contextmanager
def next_numbered(root: Path, option: str = "out") -> Iterator[tuple[int, Path]]:
    """Give the number after the highest under an option's directory, and a directory to fill, which gets that name.

    Raises:
        UsageError: the root cannot be written, or another process publishes there.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{option} ({root}) cannot be written: {error.strerror}") from error
    with sole_writer(root, option):
        remove_unfinished(root)
        number = 1 + max(numbered(root), default=0)
        with written_whole(root / str(number)) as directory:
            yield number, directory


def fsync(path: Path) -> None:
    """Have the disk hold a file, or a directory's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_whole(target: Path) -> None:
    """Remove a directory so that a kill in the middle leaves no part of it under its name."""
    doomed = target.parent / f"{TEMPORARY}{target.name}-removed"
    target.rename(doomed)
    shutil.rmtree(doomed)


def remove_unfinished(parent: Path) -> None:
    """Remove what killed writers left in a directory that nobody else writes to now."""
    for leftover in parent.glob(f"{TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
