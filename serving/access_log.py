"""One line of JSON per call: when, what, how it ended, how long it took. Never a token, a feature or an item.

Calls only append to a list in memory; a thread writes the lines a few times a second. So a slow or full disk neither
delays nor breaks a call: lines that cannot be written are counted (esr_access_log_lost) and dropped. A file that was
moved away or removed, as log rotation does, is begun anew; no signal is needed.
"""

import json
import logging
import os
import sys
import threading
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import NamedTuple, Self

from serving.metrics import ACCESS_LOG_LOST

FLUSH_SECONDS = 0.2
MOST_PENDING = 100_000
"""Lines in memory when the disk hangs; the oldest are lost first."""

log = logging.getLogger(__name__)


class Line(NamedTuple):
    """What is written of one call."""

    time: float
    """When it came, seconds since 1970."""
    method: str
    code: str
    seconds: float
    """From the handler's entry to its end."""
    peer: str
    request_id: str
    """Empty where the call has none."""
    model_version: int
    """The version that answered; 0 where none did."""

    def as_json(self) -> str:
        """One line."""
        time = datetime.fromtimestamp(self.time, UTC).isoformat(timespec="milliseconds")
        fields = {**self._asdict(), "time": time, "seconds": round(self.seconds, 6)}
        return json.dumps({name: value for name, value in fields.items() if value not in {"", 0}}) + "\n"


class AccessLog:
    """An access log, written between `with` and its end."""

    def __init__(self, target: str) -> None:
        """Open the file to append to; `-` is stdout, an empty name logs nothing.

        Raises:
            OSError: the file cannot be opened.
        """
        self._target = target
        self._descriptor: int | None = None
        if target:
            self._descriptor = os.dup(sys.stdout.fileno()) if target == "-" else opened(target)
        self._pending: deque[Line] = deque()
        self._ending = threading.Event()
        self._writer = threading.Thread(target=self._write_until_the_end, name="access-log", daemon=True)

    def add(self, line: Line) -> None:
        """Have a line written soon."""
        if self._descriptor is None:
            return
        if len(self._pending) >= MOST_PENDING:
            with suppress(IndexError):  # the writer took them all meanwhile
                self._pending.popleft()
                ACCESS_LOG_LOST.inc()
        self._pending.append(line)

    def __enter__(self) -> Self:
        if self._descriptor is not None:
            self._writer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ending.set()
        if self._descriptor is not None:
            self._writer.join()
            os.close(self._descriptor)
            self._descriptor = None

    def _write_until_the_end(self) -> None:
        is_failing = False
        while True:
            is_last = self._ending.wait(FLUSH_SECONDS)
            lines = [self._pending.popleft() for _ in range(len(self._pending))]
            try:
                if lines:
                    self._write("".join(map(Line.as_json, lines)).encode())
                    is_failing = False
            except OSError as error:
                ACCESS_LOG_LOST.inc(len(lines))
                if not is_failing:
                    log.warning("the access log cannot be written, its lines are lost: %s", error.strerror)
                is_failing = True
            if is_last:
                return

    def _write(self, content: bytes) -> None:
        assert self._descriptor is not None
        if self._target != "-" and not is_at(self._target, self._descriptor):
            following = opened(self._target)
            os.close(self._descriptor)
            self._descriptor = following
        while content:
            content = content[os.write(self._descriptor, content) :]


def opened(target: str) -> int:
    """A file to append to."""
    return os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)


def is_at(target: str, descriptor: int) -> bool:
    """Whether an open file is still the one of that name, and not one that was moved away to rotate it, or removed."""
    try:
        return os.path.samestat(os.stat(target), os.fstat(descriptor))
    except FileNotFoundError:
        return False
