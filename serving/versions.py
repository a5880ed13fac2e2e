"""Which version of the bundle answers, and how another one takes its place while requests go on.

A request takes `current()` once and keeps what it got; a switch only changes which retriever the next one gets. A new
version is verified, asked its golden queries and warmed beside the active one, in the thread that asks for it. In
memory are the active version, the one before it for RollBack, and at most one that was loaded and not yet activated.
"""

import ctypes
import itertools
import logging
import threading
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from serving.bundle import published_versions
from serving.choice import Chosen
from serving.contexts import UnknownContext
from serving.errors import BundleCorruptError, BundleUnusableError, NotServingError, ServingError, UnknownVersionError
from serving.metrics import ACTIVE_VERSION, LOADS
from serving.query import Query
from serving.retriever import Retriever

WARM_UP = (1, 8)
"""Sizes of the groups of queries that a version answers before it is switched to; golden queries were a large one."""

log = logging.getLogger(__name__)


class State(Enum):
    """What a version is to the server; the names are those of esr.v1.VersionState."""

    AVAILABLE = "published under the bundle root"
    LOADED = "verified, in memory and warm"
    ACTIVE = "answering"
    REFUSED = "the bundle was refused"


class VersionStatus(NamedTuple):
    """What is known of one version."""

    version: int
    state: State
    model_id: str
    """Empty if it is not in memory."""
    problem: str
    """Why it was refused; empty otherwise."""


class Stamp(NamedTuple):
    """What tells one writing of a manifest from the next."""

    modified: int
    size: int
    file: int


class Versions:
    """The versions under a bundle root; safe to use from any thread."""

    active: Retriever | None = None
    previous: Retriever | None = None

    def __init__(self, root: Path, chosen: Chosen, unknown_context: UnknownContext = "not-found") -> None:
        self.root = root
        self.chosen = chosen
        self.unknown_context = unknown_context
        self._staged: Retriever | None = None
        self._refused: dict[int, tuple[Stamp, str]] = {}
        self._loading = threading.Lock()  # one load at a time
        self._switching = threading.Lock()  # held for an instant only: a roll-back does not wait for a load

    def current(self) -> Retriever:
        """The retriever that answers a request that comes now.

        Raises:
            NotServingError: no version is loaded yet.
        """
        active = self.active
        if active is None:
            raise NotServingError("no version of the model is loaded yet")
        return active

    def version(self, number: int) -> Retriever:
        """A version that is in memory.

        Raises:
            UnknownVersionError: it is not.
        """
        for known in self._in_memory():
            if known.bundle.version == number:
                return known
        raise UnknownVersionError(f"version ({number}) is not loaded")

    def start(self) -> None:
        """Load and switch to the version that was chosen, or the highest that is not refused.

        Raises:
            BundleUnusableError: there is none.
            BundleCorruptError: the highest was refused, and so was every other.
        """
        published = sorted(published_versions(self.root), reverse=True)
        versions = [version for version in published if version > self.chosen.above and self.chosen.follows_latest]
        versions += [self.chosen.version] if self.chosen.version and self.chosen.version not in versions else []
        problem: ServingError = BundleUnusableError("no bundle: the root holds no <integer>/manifest.json")
        for version in versions:
            try:
                retriever = self._open(version)
            except ServingError as error:
                problem = error if version == versions[0] else problem
                continue
            for refused, (_, why) in list(self._refused.items()):
                log.warning("version %d is refused: %s", refused, why)
            self._switch(retriever, self.chosen)
            return
        raise problem

    def follow(self) -> None:
        """Look under the root once, and switch to a higher version if there is one; what is refused is told once."""
        chosen = self.chosen
        if not chosen.follows_latest:
            return
        lowest = max(chosen.above, self.active.bundle.version if self.active else 0)
        for version, manifest in sorted(stamps(self.root).items(), reverse=True):
            if version <= lowest:
                return
            if self._refused.get(version, (None,))[0] == manifest:
                continue
            try:
                self._switch(self._open_or_tell(version), chosen)
                return
            except ServingError:
                continue  # the log and the states have it

    def load(self, version: int) -> VersionStatus:
        """Load a version beside the active one, again if it was refused before.

        Raises:
            UnknownVersionError: there is no such version.
            BundleUnusableError, BundleCorruptError: the bundle is refused.
        """
        retriever = self._open_or_tell(version)
        with self._switching:
            if retriever not in (self.active, self.previous):
                self._staged = retriever
        return self._status(version)

    def activate(self, version: int = 0, follow_latest: bool = False) -> VersionStatus:
        """Switch to a version (0: the highest), loading it first if need be, and stay on it unless told to follow.

        Raises:
            UnknownVersionError: there is no such version.
            BundleUnusableError, BundleCorruptError: the bundle is refused; the active version serves on.
        """
        highest = max(published_versions(self.root), default=0)
        version = version or highest
        chosen = Chosen(version, follow_latest, highest)
        retriever = self._open_or_tell(version)
        with self._switching:
            self.chosen = chosen
        self._switch(retriever, chosen)
        return self._status(version)

    def roll_back(self) -> VersionStatus:
        """Switch back at once to the version that was active before, and stay on it.

        Raises:
            BundleUnusableError: there was none.
        """
        with self._switching:
            before = self.previous
            if before is None:
                raise BundleUnusableError("no version was active before this one")
            chosen = self.chosen = Chosen(before.bundle.version, follows_latest=False)
        self._switch(before, chosen)
        return self._status(before.bundle.version)

    def states(self) -> list[VersionStatus]:
        """Every version under the root or in memory, in rising order."""
        in_memory = {known.bundle.version for known in self._in_memory()}
        return [self._status(version) for version in sorted({*published_versions(self.root), *in_memory})]

    def _status(self, version: int) -> VersionStatus:
        for known in self._in_memory():
            if known.bundle.version == version:
                state = State.ACTIVE if known is self.active else State.LOADED
                return VersionStatus(version, state, known.bundle.manifest.model_id, "")
        if refusal := self._refused.get(version):
            return VersionStatus(version, State.REFUSED, "", refusal[1])
        return VersionStatus(version, State.AVAILABLE, "", "")

    def _in_memory(self) -> list[Retriever]:
        return [known for known in (self.active, self.previous, self._staged) if known is not None]

    def _open(self, version: int) -> Retriever:
        """The version from memory, or from its files: verified, asked its golden queries, and warm."""
        with self._loading:
            for known in self._in_memory():
                if known.bundle.version == version:
                    return known
            manifest = stamps(self.root).get(version)
            if manifest is None:
                raise UnknownVersionError(f"version ({version}) is not under the bundle root")
            try:
                retriever = Retriever.open(self.root, version, self.unknown_context)
                warm_up(retriever)
            except Exception as error:
                raise self._refuse(version, manifest, error) from error
            self._refused.pop(version, None)
            LOADS.labels("loaded").inc()
            return retriever

    def _open_or_tell(self, version: int) -> Retriever:
        try:
            return self._open(version)
        except ServingError as error:
            log.warning("version %d is refused: %s", version, error)
            raise

    def _refuse(self, version: int, manifest: Stamp, error: Exception) -> ServingError:
        if not isinstance(error, ServingError):
            log.error("version %d could not be loaded", version, exc_info=error)
            error = BundleCorruptError(f"version ({version}) could not be loaded: {type(error).__name__}")
        self._refused[version] = (manifest, str(error))
        LOADS.labels("refused").inc()
        return error

    def _switch(self, retriever: Retriever, chosen: Chosen) -> None:
        """Switch, unless an operator chose something else meanwhile."""
        with self._switching:
            if self.chosen != chosen:
                return
            if retriever is not self.active:
                self.previous, self.active = self.active, retriever
            self._staged = None
        ACTIVE_VERSION.set(retriever.bundle.version)
        log.info("version %d answers", retriever.bundle.version)
        settle_memory()


def stamps(root: Path) -> dict[int, Stamp]:
    """The published versions, and what tells one writing of a manifest from the next."""
    found = published_versions(root)
    return {version: Stamp(status.st_mtime_ns, status.st_size, status.st_ino) for version, status in found.items()}


def warm_up(retriever: Retriever) -> None:
    """Answer some queries alone and together, so that the first real one is as fast as the next."""
    context_ids = itertools.cycle(retriever.bundle.context_ids)
    for size in WARM_UP:
        retriever.answer([Query(context_id) for context_id in itertools.islice(context_ids, size)])


def settle_memory() -> None:
    """Have the allocator return what a version that went had used; it can be asked in glibc only."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
