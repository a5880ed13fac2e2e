"""A feedback log in an SQLite file: WAL mode, and a commit returns when the disk has it."""

import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import sqlite

from esr_trainer.feedback_store import Access, FeedbackLogUnusableError, Store

MODES: Mapping[Access, str] = {"read": "ro", "write": "rwc"}


def sqlite_store(url: sa.URL, timeout: float, access: Access) -> Store:
    """The file of an SQLite URL.

    Raises:
        FeedbackLogUnusableError: the URL names no file.
    """
    if url.drivername != "sqlite" or url.database in {None, "", ":memory:"} or url.query:
        raise FeedbackLogUnusableError("feedback log: an SQLite URL must name a file, as sqlite:///feedback.db does")
    path = Path(str(url.database)).absolute()
    uri = f"file:{quote(str(path))}?mode={MODES[access]}"

    def connect() -> sqlite3.Connection:
        # isolation_level None: transactions begin where this project says, not where the driver guesses
        connection = sqlite3.connect(uri, timeout, isolation_level=None, check_same_thread=False, uri=True)
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    engine = sa.create_engine("sqlite://", creator=connect, poolclass=sa.QueuePool, pool_timeout=timeout)

    @event.listens_for(engine, "connect")
    def remember(connection: Any, record: Any) -> None:
        record.info["file"] = _identity(path)

    @event.listens_for(engine, "checkout")
    def see_that_it_is_there(connection: Any, record: Any, proxy: Any) -> None:
        if record.info["file"] != _identity(path):  # moved or removed: what went there would be lost to its readers
            raise sa.exc.DisconnectionError

    # Writers queue at BEGIN IMMEDIATE, so that none finds out at its first write that another was there before.
    return Store(engine, timeout, use_wal, "BEGIN IMMEDIATE", None, sqlite.insert, plain_reason)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def use_wal(connection: sa.Connection, timeout: float) -> None:
    """Switch the file to WAL mode.

    SQLite does not wait for the lock that a switch takes, so processes that start together try again here.

    Raises:
        FeedbackLogUnusableError: the file system has no shared memory for it.
    """
    deadline = time.monotonic() + timeout
    mode = ""
    while not mode:
        try:
            mode = connection.exec_driver_sql("PRAGMA journal_mode = WAL").scalar_one()
        except sa.exc.OperationalError as error:
            if _code(error.orig) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    if mode != "wal":
        raise FeedbackLogUnusableError("feedback log: its file system does not support SQLite's WAL mode")


def _code(error: BaseException | None) -> int:
    """The primary result code, without its extension."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def plain_reason(error: BaseException, timeout: float) -> str:
    """What went wrong, for somebody who does not know SQLite's codes."""
    reasons = {
        sqlite3.SQLITE_FULL: "the disk is full",
        sqlite3.SQLITE_READONLY: "its file or directory is read-only",
        sqlite3.SQLITE_CANTOPEN: "its file cannot be opened or made; the directory may be missing or read-only",
        sqlite3.SQLITE_BUSY: f"other processes have held it for {timeout:g} s",
        sqlite3.SQLITE_IOERR: "the disk is full or fails",
        sqlite3.SQLITE_CORRUPT: "its file is damaged",
        sqlite3.SQLITE_NOTADB: "its file is not an SQLite database",
    }
    return reasons.get(_code(error), "SQLite refused")
