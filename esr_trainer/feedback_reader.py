"""Reading a feedback log, whether it is SQLite, PostgreSQL or a Parquet file."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from esr_trainer.command_line import UsageError
from esr_trainer.feedback_record import Feedback, FeedbackRefusedError, check, feedback_of
from esr_trainer.feedback_schema import FEEDBACK, RECORD, check_schema
from esr_trainer.feedback_store import TIMEOUT, FeedbackLogUnusableError, in_plain_words, open_store

PAGE = 1000
"""Records that are read at once."""
UNREADABLE = (ValueError, TypeError, AttributeError, OverflowError)
"""What a record of the wrong types raises."""


class VersionCount(NamedTuple):
    """What a log holds of one model version."""

    model_id: str
    model_version: int
    records: int
    sampled: int
    """Records of sampled candidates."""
    first: datetime
    last: datetime


def read(source: str, since: datetime | None = None, timeout: float = TIMEOUT) -> Iterator[Feedback]:
    """The records of a log in the order of their times (a Parquet file in its own); what comes meanwhile is left out.

    Args:
        source: a database's URL, or the path of an SQLite or Parquet file.
        since: the earliest time, with a time zone.
        timeout: seconds to wait for the database, page by page.

    Raises:
        FeedbackLogUnusableError: it is no feedback log, or a record breaks a rule of `check`.
        FeedbackLogUnavailableError: it cannot be read now.
        UsageError: there is no such file, or `since` has no time zone.
    """
    for page in pages(source, since, timeout):
        yield from page


def pages(source: str, since: datetime | None = None, timeout: float = TIMEOUT) -> Iterator[list[Feedback]]:
    """What `read` gives, up to PAGE records at a time, so that a log may be larger than memory."""
    if since is not None and since.utcoffset() is None:
        raise UsageError(f"since ({since}) must have a time zone")
    if is_parquet(source):
        from esr_trainer.feedback_parquet import parquet_pages

        unchecked = parquet_pages(Path(source), since, PAGE)
    else:
        unchecked = _database_pages(source, since, timeout)
    for page in unchecked:
        try:
            for feedback in page:
                check(feedback)
        except (FeedbackRefusedError, *UNREADABLE) as error:
            raise FeedbackLogUnusableError(f"feedback log: a record does not read: {error}") from error
        yield page


def summary(source: str, timeout: float = TIMEOUT) -> list[VersionCount]:
    """How many records of which model versions a log holds, in the order of their first times.

    Args:
        source: see `read`.
        timeout: seconds to wait for the database.

    Raises:
        FeedbackLogUnusableError, FeedbackLogUnavailableError: see `read`.
    """
    if is_parquet(source):
        from esr_trainer.feedback_parquet import summarise_parquet

        return [VersionCount(*row) for row in summarise_parquet(Path(source))]
    columns = FEEDBACK.c
    first = sa.func.min(columns.time)
    query = (
        sa.select(
            columns.model_id,
            columns.model_version,
            sa.func.count(),
            sa.func.count(sa.case((columns.mode == "sampled", 1))),
            first,
            sa.func.max(columns.time),
        )
        .group_by(columns.model_id, columns.model_version)
        .order_by(first, columns.model_id, columns.model_version)
    )
    with _reading(source, timeout) as connect, connect() as connection:
        return [VersionCount(*row) for row in connection.execute(query)]


def is_parquet(source: str) -> bool:
    """Whether a source is a Parquet file, by its content.

    Raises:
        UsageError: it is a path, and no file is there.
    """
    if "://" in source:
        return False
    try:
        with Path(source).open("rb") as file:
            return file.read(4) == b"PAR1"
    except OSError as error:
        raise UsageError(f"feedback log ({source}) cannot be read: {error.strerror}") from error


Connect = Callable[[], AbstractContextManager[sa.Connection]]


@contextmanager
def _reading(source: str, timeout: float) -> Iterator[Connect]:
    """A database that is only read: each connection of it sees one state, within one timeout."""
    store = open_store(source, timeout, "read")

    @contextmanager
    def connect() -> Iterator[sa.Connection]:
        with in_plain_words(store, "read"), store.engine.connect() as connection:
            yield connection

    try:
        with connect() as connection:
            check_schema(connection)
        yield connect
    finally:
        store.engine.dispose()


def _database_pages(source: str, since: datetime | None, timeout: float) -> Iterator[list[Feedback]]:
    """Each page goes on where the last ended, by key: no transaction stays open, and writers are not held up."""
    key = sa.tuple_(FEEDBACK.c.time, FEEDBACK.c.sequence)
    with _reading(source, timeout) as connect:
        with connect() as connection:
            last = connection.scalar(sa.select(sa.func.max(FEEDBACK.c.sequence)))
        after = (datetime.min.replace(tzinfo=UTC) if since is None else since, 0)
        while last is not None:
            bound = sa.tuple_(*(sa.literal(value, column.type) for value, column in zip(after, key, strict=True)))
            query = sa.select(FEEDBACK.c.sequence, *RECORD).where(key > bound, FEEDBACK.c.sequence <= last)
            with connect() as connection:
                try:
                    rows = connection.execute(query.order_by(*key).limit(PAGE)).all()
                except UNREADABLE as error:
                    raise FeedbackLogUnusableError(f"feedback log: a record does not read: {error}") from error
            if not rows:
                return
            yield [feedback_of(row[1:]) for row in rows]
            after = (rows[-1].time, rows[-1].sequence)
