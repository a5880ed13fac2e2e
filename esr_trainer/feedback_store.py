"""The database behind a feedback log, whichever it is: its URL, and its failures in plain words."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa

from esr_trainer.command_line import UsageError

Access = Literal["read", "write"]
TIMEOUT = 5.0
"""Seconds that a call may wait for the database, by default."""
DEADLINE: ContextVar[float] = ContextVar("DEADLINE", default=math.inf)
"""When the current call must have ended, by time.monotonic: for waits that no setting of a database bounds."""


class FeedbackLogUnavailableError(UsageError):
    """The log cannot be used now; the message says why in plain words, without paths, passwords or SQL."""


class FeedbackLogUnusableError(UsageError):
    """What the URL names is no feedback log, or one of another schema: trying again does not help."""


class Store(NamedTuple):
    """An engine, and what its database does its own way."""

    engine: sa.Engine
    timeout: float
    """Seconds that a call may wait."""
    settle: Callable[[sa.Connection, float], None]
    """Called on each new connection that will write, outside a transaction."""
    begin: str | None
    """What a writing transaction starts with."""
    alone: str | None
    """What, within a transaction, makes other processes wait that would create the tables too."""
    insert: Callable[[sa.Table], Any]
    """An INSERT with ON CONFLICT."""
    reason: Callable[[BaseException, float], str]
    """Why the database failed, from its error and the timeout."""


def _sqlite(url: sa.URL, timeout: float, access: Access) -> Store:
    from esr_trainer.feedback_sqlite import sqlite_store

    return sqlite_store(url, timeout, access)


def _postgresql(url: sa.URL, timeout: float, access: Access) -> Store:
    try:
        from esr_trainer.feedback_postgresql import postgresql_store
    except ImportError as error:
        raise FeedbackLogUnusableError("feedback log: PostgreSQL needs psycopg: install '.[postgres]'") from error
    return postgresql_store(url, timeout, access)


STORES: Mapping[str, Callable[[sa.URL, float, Access], Store]] = {"sqlite": _sqlite, "postgresql": _postgresql}
"""Kind of database, as URLs begin -> (URL, timeout in seconds, access) -> store; nothing is connected yet."""


def open_store(text: str, timeout: float, access: Access) -> Store:
    """The database of a URL, or of an SQLite file's path; nothing is connected yet.

    Raises:
        FeedbackLogUnusableError: there is no such kind of database, or its driver is missing. The text is not quoted:
            it may hold a password.
    """
    try:
        url = sa.make_url(text) if "://" in text else sa.URL.create("sqlite", database=text)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise FeedbackLogUnusableError("feedback log: the URL cannot be parsed") from error
    kind = url.get_backend_name()
    if kind not in STORES:
        raise FeedbackLogUnusableError(f"feedback log: {kind} is not one of {', '.join(STORES)}")
    return STORES[kind](url, timeout, access)


@contextmanager
def in_plain_words(store: Store, done: str) -> Iterator[None]:
    """Bound a call, and turn the database's errors into one.

    Args:
        store: whose errors.
        done: "written" or "read".

    Raises:
        FeedbackLogUnavailableError: the database failed, or took too long.
    """
    before = DEADLINE.set(time.monotonic() + store.timeout)
    try:
        yield
    except sa.exc.DBAPIError as error:
        reason = store.reason(error.orig or error, store.timeout)
        raise FeedbackLogUnavailableError(f"the feedback log cannot be {done}: {reason}") from error
    except sa.exc.TimeoutError as error:
        raise FeedbackLogUnavailableError(f"the feedback log cannot be {done}: every connection is in use") from error
    finally:
        DEADLINE.reset(before)
