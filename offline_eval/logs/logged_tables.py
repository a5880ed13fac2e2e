"""Logs as plain tables: CSV or Parquet, a row per item that was shown.

Axes: R rounds of a page.
"""

import gzip
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import polars as pl

from esr_trainer.command_line import UsageError
from esr_trainer.logged_interactions import COLUMNS, PROPENSITY
from offline_eval.logs.logged_rounds import LoggedRounds

TableKind = Literal["open-bandit", "interactions"]

PAGE = 100_000
"""Rows of a table that are read at once."""


PARQUET = b"PAR1"


class TableColumns(NamedTuple):
    """What a log of one item per row calls its columns."""

    context: str
    item: str
    reward: str
    propensity: str


TABLES: Mapping[TableKind, TableColumns] = {
    "open-bandit": TableColumns("position", "item_id", "click", "propensity_score"),
    "interactions": TableColumns(*COLUMNS, PROPENSITY),
}
"""Open Bandit's users are hashes without an id, so that its context is the position (Saito et al. 2021)."""


class Rule(NamedTuple):
    """What a column's values must do."""

    holds: pl.Expr
    rule: str


def there(name: str) -> Rule:
    """A value that is not empty."""
    return Rule(pl.col(name).fill_null("") != "", "be there")


def a_number(name: str) -> Rule:
    """A finite number."""
    return Rule(pl.col(name).is_finite().fill_null(False), "be a finite number")


def a_chance(name: str) -> Rule:
    """A probability that something had that happened."""
    return Rule(((pl.col(name) > 0) & (pl.col(name) <= 1)).fill_null(False), "be above 0 and at most 1")


def columns_of(path: Path) -> Sequence[str]:
    """The names of a CSV or Parquet file's columns."""
    with path.open("rb") as file:
        head = file.read(4)
    if head == PARQUET:
        return list(pl.read_parquet_schema(path))
    with gzip.open(path) if head.startswith(b"\x1f\x8b") else path.open("rb") as file:
        return file.readline(1 << 16).decode(errors="replace").strip().split(",")


def table_rounds(path: Path, columns: TableColumns) -> Iterator[LoggedRounds]:
    """The rows of a CSV or Parquet file, each a round that showed one item."""
    rules = {
        columns.context: there(columns.context),
        columns.item: there(columns.item),
        columns.reward: a_number(columns.reward),
        columns.propensity: a_chance(columns.propensity),
    }
    for page in checked_pages(path, (columns.context, columns.item), rules):
        yield LoggedRounds(
            contexts=page[columns.context],
            slate=page[columns.item],
            rewards=page[columns.reward].to_numpy()[:, None],
            log_propensities=np.log(page[columns.propensity].to_numpy())[:, None],
        )


def checked_pages(path: Path, text: Sequence[str], rules: Mapping[str, Rule]) -> Iterator[pl.DataFrame]:
    """The rows of a CSV or Parquet file, some at a time.

    Args:
        path: the file.
        text: the columns that are text; others are float64.
        rules: column -> what its values must do.

    Raises:
        UsageError: the file cannot be read, or a value breaks its rule; it and its row are quoted.
    """
    first = 1
    kinds = {name: pl.String() if name in text else pl.Float64() for name in rules}
    try:
        with path.open("rb") as file:
            is_parquet = file.read(4) == PARQUET
        table = pl.scan_parquet(path) if is_parquet else pl.scan_csv(path, infer_schema=False)
        rows = table.select(pl.col(name).cast(kind, strict=kind == pl.String) for name, kind in kinds.items())
        for page in rows.collect_batches(chunk_size=PAGE, maintain_order=True):
            check(page, rules, path, first)
            first += len(page)
            yield page
    except pl.exceptions.PolarsError as error:
        raise UsageError(f"log ({path}) cannot be read: {str(error).splitlines()[0]}") from error


def check(page: pl.DataFrame, rules: Mapping[str, Rule], path: Path, first: int) -> None:
    """Raise a UsageError that quotes the first value that no estimator could use, and its row."""
    for name, (holds, rule) in rules.items():
        wrong = page.select(holds).to_series().not_().arg_true()
        if len(wrong):
            raise UsageError(f"log ({path}): row {first + wrong[0]} has {name} {page[name][wrong[0]]}; it must {rule}")
