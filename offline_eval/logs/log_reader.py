"""Reading a log, whoever wrote it, page by page: the server's feedback log, Open Bandit's CSV, or a plain table.

Axes: R rounds of a page.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import polars as pl

from esr_trainer.command_line import UsageError
from esr_trainer.feedback_log import summary
from esr_trainer.feedback_reader import pages as feedback_pages
from esr_trainer.feedback_record import COLUMNS as FEEDBACK_COLUMNS
from offline_eval.logs.log_options import GreedyRounds
from offline_eval.logs.logged_rounds import LoggedRounds, of_records
from offline_eval.logs.logged_slates import MARGINAL, SLATE_COLUMNS, slate_rounds
from offline_eval.logs.logged_tables import TABLES, TableKind, columns_of, table_rounds

LogKind = Literal["feedback", "slates", "marginal-slates"] | TableKind
"""Marginal slates tell how probable an item was in its slot whatever the others held."""


def kind_of(log: str) -> LogKind:
    """What wrote a log, by its content.

    Args:
        log: a database's URL, or the path of an SQLite, Parquet or CSV file (gzip or plain).

    Raises:
        UsageError: there is no such file, or it is none of these.
    """
    if "://" in log:
        return "feedback"
    path = Path(log)
    try:
        with path.open("rb") as file:
            if file.read(16).startswith(b"SQLite format 3"):
                return "feedback"
        names = set(columns_of(path))
    except (OSError, EOFError, pl.exceptions.PolarsError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise UsageError(f"log ({log}) cannot be read: {reason}") from error
    if set(FEEDBACK_COLUMNS) <= names:
        return "feedback"
    if set(SLATE_COLUMNS) <= names:
        return "marginal-slates" if MARGINAL in names else "slates"
    for kind, columns in TABLES.items():
        if set(columns) <= names:
            return kind
    needs = " or ".join(", ".join(columns) for columns in (*TABLES.values(), SLATE_COLUMNS))
    raise UsageError(f"log ({log}) is no feedback log, and no table with the columns {needs}")


def read_rounds(log: str, greedy: GreedyRounds = "refuse") -> Iterator[LoggedRounds]:
    """The rounds of a log in its own order, some at a time, so that it may be larger than memory.

    Args:
        log: see `kind_of`.
        greedy: what becomes of a feedback log's greedy rounds.

    Raises:
        UsageError: it cannot be read, a row breaks a rule, greedy rounds are there and refused, or nothing is left.
    """
    kind = kind_of(log)
    count = 0
    for page in pages_of(log, kind, greedy):
        count += len(page.contexts)
        yield page
    if not count:
        raise UsageError(f"log ({log}) holds no rounds")


def pages_of(log: str, kind: LogKind, greedy: GreedyRounds) -> Iterator[LoggedRounds]:
    """The rounds of a log of this kind."""
    match kind:
        case "feedback":
            return served_rounds(log, greedy)
        case "slates" | "marginal-slates":
            return slate_rounds(Path(log), has_marginals=kind == "marginal-slates")
        case _:
            return table_rounds(Path(log), TABLES[kind])


def served_rounds(log: str, greedy: GreedyRounds) -> Iterator[LoggedRounds]:
    """The sampled rounds of the server's feedback log (esr_trainer.feedback_log)."""
    counts = summary(log)
    total, sampled = sum(version.records for version in counts), sum(version.sampled for version in counts)
    if total > sampled and (greedy == "refuse" or not sampled):
        raise UsageError(f"log ({log}): {total - sampled} of {total} rounds are greedy, which have no support")
    for page in feedback_pages(log):
        kept = [record for record in page if record.shown.mode == "sampled"]
        if unnamed := sum(not record.shown.context_id for record in kept):
            raise UsageError(f"log ({log}): {unnamed} of {len(kept)} rounds name no context_id")
        if kept:
            yield of_records(kept)
