"""The files of a bundle, read once: what was hashed is what is parsed."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from serving.errors import BundleCorruptError, BundleUnusableError
from serving.index_files import ALIGNMENT, FLAT_HEADER


class BundleFile(BaseModel):
    """One file of a bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


def files_of(directory: Path) -> dict[str, BundleFile]:
    """Every file that is there, for a manifest that is written last."""
    found = {}
    for path in sorted(directory.iterdir()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[path.name] = BundleFile(sha256=digest, size=path.stat().st_size)
    return found


def verified_bytes(directory: Path, files: Mapping[str, BundleFile], name: str) -> bytes:
    """One file's bytes, after their size and SHA-256 were checked."""
    return verified_array(directory, files, name).tobytes()


def verified_array(directory: Path, files: Mapping[str, BundleFile], name: str) -> np.ndarray:
    """One file's bytes, uint8, after their size and SHA-256 were checked; a flat index's floats are aligned in memory.

    The file is read once: what is hashed is what will be parsed, whatever happens to the file meanwhile.
    """
    expected = files[name]
    room = np.empty(expected.size + ALIGNMENT, np.uint8)
    start = -(room.ctypes.data + FLAT_HEADER.size) % ALIGNMENT
    content = room[start : start + expected.size]
    with opened(directory, files, name) as file:
        size = file.readinto(content.data)
    check_hash(name, hashlib.sha256(content.data[:size]).hexdigest(), expected)
    return content


def verify(directory: Path, files: Mapping[str, BundleFile], name: str) -> None:
    """Check the size and SHA-256 of a file that is not parsed, without holding it."""
    with opened(directory, files, name) as file:
        check_hash(name, hashlib.file_digest(file, "sha256").hexdigest(), files[name])


@contextmanager
def opened(directory: Path, files: Mapping[str, BundleFile], name: str) -> Iterator[BufferedReader]:
    """A file of the manifest's size."""
    path, expected = directory / name, files[name]
    if not path.is_file():
        raise BundleCorruptError(f"{name} is missing")
    if path.stat().st_size != expected.size:
        raise BundleCorruptError(f"{name} has {path.stat().st_size} bytes, not {expected.size}")
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise BundleUnusableError(f"{name} cannot be read: {error.strerror}") from error


def check_hash(name: str, found: str, expected: BundleFile) -> None:
    """Refuse a file that is not the one that the manifest names."""
    if found != expected.sha256:
        raise BundleCorruptError(f"{name} was changed: its SHA-256 differs from the manifest's")
