"""The feedback log: what was shown and what it earned, durable before it is acknowledged, once per request id.

A record is self-contained, since the client sends back what was shown: retrieval never waits for a database, any
process may record, and nothing is lost when a server dies between the two.
Imports neither torch, nor polars, nor anything of serving.
"""

import enum
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

import sqlalchemy as sa

from esr_trainer.feedback_reader import VersionCount, read, summary
from esr_trainer.feedback_record import COLUMNS, Feedback, FeedbackRefusedError, Shown, check, feedback_of, values_of
from esr_trainer.feedback_schema import FEEDBACK, RECORD, create_schema
from esr_trainer.feedback_store import (
    TIMEOUT,
    FeedbackLogUnavailableError,
    FeedbackLogUnusableError,
    Store,
    in_plain_words,
    open_store,
)

__all__ = [
    "Feedback",
    "FeedbackLog",
    "FeedbackLogUnavailableError",
    "FeedbackLogUnusableError",
    "FeedbackRefusedError",
    "Outcome",
    "Shown",
    "VersionCount",
    "check",
    "read",
    "summary",
]


class Outcome(enum.Enum):
    """What became of a record."""

    NEW = "new"
    SAME = "same"
    """The same was there already, whatever its time."""
    CONFLICT = "conflict"
    """Another record of this request id is there; it stays."""


class FeedbackLog:
    """A log that is written to, by any number of threads and processes."""

    def __init__(self, url: str, timeout: float = TIMEOUT) -> None:
        """Name the log without touching it: what is unreachable now may be there at the first `record`.

        Args:
            url: `sqlite:///path`, the path alone, or `postgresql://user@host/database`.
            timeout: seconds that a call may wait for the database (connecting apart, at least 2 s).

        Raises:
            FeedbackLogUnusableError: no such kind of database, or its driver is missing.
        """
        self._store = open_store(url, timeout, "write")

    @classmethod
    def open(cls, url: str, timeout: float = TIMEOUT) -> Self:
        """Name the log, and see that it can be written; it is created if it is not there.

        Raises:
            FeedbackLogUnusableError: it is no feedback log, or one of another schema.
            FeedbackLogUnavailableError: it cannot be written now.
        """
        log = cls(url, timeout)
        with log._transaction():
            pass
        return log

    def record(self, batch: Sequence[Feedback]) -> list[Outcome]:
        """Write records in one transaction; when this returns, the disk has them.

        A request id is recorded once: the same record again changes nothing, another one is refused on its own.

        Returns:
            What became of each record.

        Raises:
            FeedbackRefusedError: a record breaks a rule of `check`; nothing is written.
            FeedbackLogUnavailableError: the database failed. Nothing is written, or all if it broke off at the very
                end: send the batch again.
            FeedbackLogUnusableError: the database holds another schema.
        """
        for feedback in batch:
            check(feedback)
        firsts: dict[str, Feedback] = {}
        for feedback in batch:
            firsts.setdefault(feedback.shown.request_id, feedback)
        if not firsts:
            return []
        with self._transaction() as connection:
            new, there = _insert(self._store, connection, firsts)
        outcomes = []
        for feedback in batch:
            request_id = feedback.shown.request_id
            if request_id in new:
                new.remove(request_id)
                outcomes.append(Outcome.NEW)
                there[request_id] = feedback
            else:
                same = request_id in there and there[request_id][:-1] == feedback[:-1]
                outcomes.append(Outcome.SAME if same else Outcome.CONFLICT)
        return outcomes

    def close(self) -> None:
        """Let go of the database; a later call connects again."""
        self._store.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        """A writing transaction; a connection that is new or had failed is checked, and the tables made if need be."""
        with in_plain_words(self._store, "written"), self._store.engine.connect() as connection:
            try:
                if fresh := "checked" not in connection.info:
                    self._store.settle(connection, self._store.timeout)
                    connection.rollback()
                for statement in (self._store.begin, self._store.alone if fresh else None):
                    if statement:
                        connection.exec_driver_sql(statement)
                if fresh:
                    create_schema(connection)
                yield connection
                connection.commit()
                connection.info["checked"] = True
            except BaseException:
                connection.invalidate()
                raise


def _insert(
    store: Store, connection: sa.Connection, firsts: Mapping[str, Feedback]
) -> tuple[set[str], dict[str, Feedback]]:
    """Insert what is not there: the new request ids, and the records that were there under the others.

    In the order of the ids, so that two writers of the same ids wait for each other in one order.
    """
    rows = [dict(zip(COLUMNS, values_of(firsts[request_id]), strict=True)) for request_id in sorted(firsts)]
    statement = store.insert(FEEDBACK).on_conflict_do_nothing(index_elements=["request_id"])
    new = set(connection.scalars(statement.returning(FEEDBACK.c.request_id), rows))
    if len(new) == len(firsts):
        return new, {}
    others = sa.select(*RECORD).where(FEEDBACK.c.request_id.in_(firsts.keys() - new))
    there = map(feedback_of, connection.execute(others))
    return new, {feedback.shown.request_id: feedback for feedback in there}
