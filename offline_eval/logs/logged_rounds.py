"""Rounds of a log, whoever wrote it, page by page: the server's feedback log, Open Bandit's CSV, or a plain log.

Axes: R rounds of a page, L slots, K candidates.
"""

import gzip
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import polars as pl

from esr_trainer.command_line import UsageError
from esr_trainer.feedback_log import Feedback, summary
from esr_trainer.feedback_reader import pages as feedback_pages
from esr_trainer.feedback_record import COLUMNS as FEEDBACK_COLUMNS
from esr_trainer.logged_interactions import COLUMNS, PROPENSITY
from offline_eval.logs.log_options import GreedyRounds

LogKind = Literal["feedback", "open-bandit", "interactions"]

PAGE = 100_000
"""Rows of a table that are read at once."""


class LoggedRounds(NamedTuple):
    """Rounds as they were logged, ids as text, null for none; None is what this kind of log cannot tell."""

    contexts: pl.Series
    """(R,), text."""
    slate: pl.Series
    """(R * L,), text, slot after slot; null in a slot that was not filled."""
    rewards: np.ndarray
    """(R, L); 0 in a slot that was not filled."""
    log_propensities: np.ndarray | None = None
    """Log-probability of each slot's item as shown, given the slots before it, (R, L); 0 in an empty slot."""
    candidates: pl.Series | None = None
    """(R * K,), text, position after position; null beyond a round's own K."""
    inclusion: np.ndarray | None = None
    """Inclusion probability of each candidate, (R, K); nan beyond a round's own K."""
    log_inclusion: np.ndarray | None = None
    """Log inclusion probability of each slot's item, (R, L); 0 in an empty slot."""
    log_set_probability: np.ndarray | None = None
    """Log-probability of the ordered candidates, (R,)."""

    @property
    def shown(self) -> np.ndarray:
        """(R, L) bool: the slots that were filled."""
        filled: np.ndarray = self.slate.is_not_null().to_numpy().reshape(self.rewards.shape)
        return filled


class TableColumns(NamedTuple):
    """What a log of one item per row calls its columns."""

    context: str
    item: str
    reward: str
    propensity: str


TABLES: Mapping[LogKind, TableColumns] = {
    "open-bandit": TableColumns("position", "item_id", "click", "propensity_score"),
    "interactions": TableColumns(*COLUMNS, PROPENSITY),
}
"""Open Bandit's users are hashes without an id, so that its context is the position (Saito et al. 2021)."""


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
            head = file.read(16)
        if head.startswith(b"SQLite format 3"):
            return "feedback"
        names = set(columns_of(path, head))
    except (OSError, EOFError, pl.exceptions.PolarsError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise UsageError(f"log ({log}) cannot be read: {reason}") from error
    if set(FEEDBACK_COLUMNS) <= names:
        return "feedback"
    for kind, columns in TABLES.items():
        if set(columns) <= names:
            return kind
    needs = " or ".join(", ".join(columns) for columns in TABLES.values())
    raise UsageError(f"log ({log}) is no feedback log, and no table with the columns {needs}")


def columns_of(path: Path, head: bytes) -> Sequence[str]:
    """The names of a table's columns."""
    if head.startswith(b"PAR1"):
        return list(pl.read_parquet_schema(path))
    with gzip.open(path) if head.startswith(b"\x1f\x8b") else path.open("rb") as file:
        return file.readline(1 << 16).decode(errors="replace").strip().split(",")


def read_rounds(log: str, greedy: GreedyRounds = "refuse") -> Iterator[LoggedRounds]:
    """The rounds of a log in its own order, some at a time, so that it may be larger than memory.

    Args:
        log: see `kind_of`.
        greedy: what becomes of a feedback log's greedy rounds.

    Raises:
        UsageError: it cannot be read, a row breaks a rule, greedy rounds are there and refused, or nothing is left.
    """
    kind = kind_of(log)
    pages = served_rounds(log, greedy) if kind == "feedback" else table_rounds(Path(log), TABLES[kind])
    count = 0
    for page in pages:
        count += len(page.contexts)
        yield page
    if not count:
        raise UsageError(f"log ({log}) holds no rounds")


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


def of_records(records: Sequence[Feedback]) -> LoggedRounds:
    """Sampled records side by side."""
    num_slots = max(len(record.slate) for record in records)
    num_candidates = max(len(record.shown.candidates) for record in records)
    log_inclusion = [
        [math.log(dict(zip(record.shown.candidates, record.shown.inclusion_propensities, strict=True))[item])
         for item in record.slate]
        for record in records
    ]  # fmt: skip
    return LoggedRounds(
        contexts=pl.Series([record.shown.context_id for record in records], dtype=pl.String),
        slate=padded_ids([record.slate for record in records], num_slots),
        rewards=padded([record.rewards for record in records], num_slots, 0.0),
        candidates=padded_ids([record.shown.candidates for record in records], num_candidates),
        inclusion=padded([record.shown.inclusion_propensities for record in records], num_candidates, math.nan),
        log_inclusion=padded(log_inclusion, num_slots, 0.0),
        log_set_probability=np.array([record.shown.log_probability for record in records], dtype=np.float64),
    )


def padded(rows: Sequence[Sequence[float]], width: int, filler: float) -> np.ndarray:
    """Rows of numbers as a matrix."""
    return np.array([[*row, *[filler] * (width - len(row))] for row in rows], dtype=np.float64)


def padded_ids(rows: Sequence[Sequence[str]], width: int) -> pl.Series:
    """Rows of ids one after the other, each filled up with null."""
    flat = chain.from_iterable((*row, *[None] * (width - len(row))) for row in rows)
    return pl.Series(list(flat), dtype=pl.String)


def table_rounds(path: Path, columns: TableColumns) -> Iterator[LoggedRounds]:
    """The rows of a CSV or Parquet file, each a round that showed one item."""
    numbers = [columns.reward, columns.propensity]
    text = [pl.col(name).cast(pl.String) for name in (columns.context, columns.item)]
    first = 1
    try:
        with path.open("rb") as file:
            is_parquet = file.read(4) == b"PAR1"
        table = pl.scan_parquet(path) if is_parquet else pl.scan_csv(path, infer_schema=False)
        rows = table.select(*text, *(pl.col(name).cast(pl.Float64, strict=False) for name in numbers))
        for page in rows.collect_batches(chunk_size=PAGE, maintain_order=True):
            check(page, columns, path, first)
            first += len(page)
            yield LoggedRounds(
                contexts=page[columns.context],
                slate=page[columns.item],
                rewards=page[columns.reward].to_numpy()[:, None],
                log_propensities=np.log(page[columns.propensity].to_numpy())[:, None],
            )
    except pl.exceptions.PolarsError as error:
        raise UsageError(f"log ({path}) cannot be read: {str(error).splitlines()[0]}") from error


def check(page: pl.DataFrame, columns: TableColumns, path: Path, first: int) -> None:
    """Raise a UsageError that quotes the first value that no estimator could use, and its row."""
    propensity = pl.col(columns.propensity)
    rules = {
        columns.context: (pl.col(columns.context).fill_null("") != "", "be there"),
        columns.item: (pl.col(columns.item).fill_null("") != "", "be there"),
        columns.reward: (pl.col(columns.reward).is_finite().fill_null(False), "be a finite number"),
        columns.propensity: (((propensity > 0) & (propensity <= 1)).fill_null(False), "be above 0 and at most 1"),
    }
    for name, (holds, rule) in rules.items():
        wrong = page.select(holds).to_series().not_().arg_true()
        if len(wrong):
            raise UsageError(f"log ({path}): row {first + wrong[0]} has {name} {page[name][wrong[0]]}; it must {rule}")
