"""A feedback log in PostgreSQL: no call waits longer than its timeout, whatever has become of the server."""

import math
import time
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg.abc import PQGen
from sqlalchemy import event
from sqlalchemy.dialects import postgresql

from esr_trainer.feedback_store import DEADLINE, Access, FeedbackLogUnusableError, Store

Result = TypeVar("Result")
ADVISORY_LOCK = 7305804402
"""Any number that nothing else in the database locks."""


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is given up at DEADLINE.

    The server's own timeouts do not help against a server that has been stopped or a network that swallows packets.
    """

    def wait(self, gen: PQGen[Result], interval: float = 0.1, timeout: float | None = None) -> Result:
        """Wait for the server's answer, no longer than until DEADLINE."""
        left = DEADLINE.get() - time.monotonic()
        if left == math.inf:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, max(0.0, left))
        except psycopg.OperationalError:
            if time.monotonic() >= DEADLINE.get():
                self.pgconn.finish()  # its state is unknown: whoever comes next takes another connection
            raise


def postgresql_store(url: sa.URL, timeout: float, access: Access) -> Store:
    """The database of a PostgreSQL URL.

    Raises:
        FeedbackLogUnusableError: the URL asks for another driver than psycopg 3.
    """
    if url.drivername not in {"postgresql", "postgresql+psycopg"}:
        raise FeedbackLogUnusableError(f"feedback log: {url.drivername} must be postgresql or postgresql+psycopg")
    milliseconds = max(1, int(timeout * 800))  # before the client hangs up, so that no backend waits on
    settings = {
        "statement_timeout": milliseconds,
        "lock_timeout": milliseconds,
        "idle_in_transaction_session_timeout": max(1, int(timeout * 2000)),
        "synchronous_commit": "on",
        "default_transaction_read_only": "on" if access == "read" else "off",
    }
    given = url.query.get("options", "")
    options = [given if isinstance(given, str) else " ".join(given)]
    options += [f"-c {name}={value}" for name, value in settings.items()]
    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg"),
        connect_args={"connect_timeout": max(2, math.ceil(timeout)), "options": " ".join(options)},
        pool_pre_ping=True,
        pool_timeout=timeout,
    )

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, record: Any, arguments: Any, keywords: Any) -> BoundedConnection:
        return BoundedConnection.connect(*arguments, **keywords)

    alone = f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})"
    return Store(engine, timeout, require_utf8, None, alone, postgresql.insert, plain_reason)


def require_utf8(connection: sa.Connection, timeout: float) -> None:
    """See that the database can hold any text.

    Raises:
        FeedbackLogUnusableError: its encoding is another.
    """
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
    if encoding != "UTF8":
        raise FeedbackLogUnusableError(f"feedback log: the database's encoding ({encoding}) must be UTF8")


def plain_reason(error: BaseException, timeout: float) -> str:
    """What went wrong, for somebody who does not know PostgreSQL's codes."""
    state = getattr(error, "sqlstate", None)
    reasons = {
        None: "PostgreSQL cannot be reached, refused the login or broke off",
        "25006": "PostgreSQL is read-only",
        "42501": "PostgreSQL's permissions forbid it",
        "53100": "PostgreSQL's disk is full",
        "53300": "PostgreSQL has too many connections",
        "55P03": f"PostgreSQL did not finish within {timeout:g} s",
        "57014": f"PostgreSQL did not finish within {timeout:g} s",
        "57P01": "PostgreSQL is shutting down",
        "57P02": "PostgreSQL broke off",
        "57P03": "PostgreSQL is starting or shutting down",
    }
    if isinstance(error, psycopg.OperationalError) and state is None and "timeout" in str(error):
        return reasons["57014"]
    return reasons.get(state, f"PostgreSQL refused (SQLSTATE {state})")
