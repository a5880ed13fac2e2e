"""The tables of a feedback log. Lists are JSON in text columns: exact, and readable by SQL's own JSON functions."""

from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from pydantic_core import from_json, to_json

from esr_trainer.feedback_record import COLUMNS, MAX_REQUEST_ID
from esr_trainer.feedback_store import FeedbackLogUnusableError

SCHEMA_VERSION = 1
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


class JsonList(sa.types.TypeDecorator[tuple[Any, ...]]):
    """A list as JSON text: floats come back bit for bit, and SQL's JSON functions can read it."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str:
        """To the database."""
        return to_json(value).decode()

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> tuple[Any, ...]:
        """From the database."""
        return tuple(from_json(value))


class UtcMicroseconds(sa.types.TypeDecorator[datetime]):
    """A time as microseconds since 1970 in UTC: SQLite has no type for it."""

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> int:
        """To the database."""
        microseconds: int = (value - EPOCH) // MICROSECOND
        return microseconds

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime:
        """From the database."""
        since: timedelta = value * MICROSECOND
        return EPOCH + since


METADATA = sa.MetaData()
SCHEMA = sa.Table("esr_feedback_schema", METADATA, sa.Column("version", sa.Integer, nullable=False))
FEEDBACK = sa.Table(
    "esr_feedback",
    METADATA,
    # SQLite makes only an INTEGER key its row number
    sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("request_id", sa.String(MAX_REQUEST_ID), nullable=False, unique=True),
    sa.Column("model_id", sa.Text, nullable=False),
    sa.Column("model_version", sa.BigInteger, nullable=False),
    sa.Column("mode", sa.Text, nullable=False),
    sa.Column("context_id", sa.Text, nullable=False),
    sa.Column("candidates", JsonList, nullable=False),
    sa.Column("inclusion_propensities", JsonList, nullable=False),
    sa.Column("log_probability", sa.Double),
    sa.Column("experts", JsonList, nullable=False),
    sa.Column("slate", JsonList, nullable=False),
    sa.Column("lsr_probabilities", JsonList, nullable=False),
    sa.Column("rewards", JsonList, nullable=False),
    sa.Column("time", UtcMicroseconds, nullable=False),
    sa.Index("esr_feedback_time", "time", "sequence"),
)
RECORD = [FEEDBACK.c[name] for name in COLUMNS]
"""The columns of a record, in the order of COLUMNS."""


def create_schema(connection: sa.Connection) -> None:
    """Make the tables that are not there, and see that those that are there are of this release's schema.

    Raises:
        FeedbackLogUnusableError: they are of another one.
    """
    METADATA.create_all(connection)
    if connection.scalar(sa.select(sa.func.count()).select_from(SCHEMA)) == 0:
        connection.execute(sa.insert(SCHEMA).values(version=SCHEMA_VERSION))
    check_schema(connection)


def check_schema(connection: sa.Connection) -> None:
    """See that there are tables of this release's schema.

    Raises:
        FeedbackLogUnusableError: there are none, or they are of another one.
    """
    if not sa.inspect(connection).has_table(SCHEMA.name):
        raise FeedbackLogUnusableError("feedback log: the database holds no feedback log")
    versions = connection.scalars(sa.select(SCHEMA.c.version)).all()
    if versions != [SCHEMA_VERSION]:
        found = ", ".join(map(str, versions)) or "none"
        raise FeedbackLogUnusableError(f"feedback log: schema version ({found}) must be {SCHEMA_VERSION}")
