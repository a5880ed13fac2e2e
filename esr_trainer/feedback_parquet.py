"""A feedback log as one Parquet file: written whole, page by page, so that it may be larger than memory."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
from polars.io.plugins import register_io_source

from esr_trainer.command_line import UsageError
from esr_trainer.feedback_reader import pages
from esr_trainer.feedback_record import COLUMNS, Feedback, feedback_of, values_of
from esr_trainer.whole_directory import file_written_whole

TYPES = (
    *(pl.String, pl.String, pl.Int64, pl.String, pl.String),
    *(pl.List(pl.String), pl.List(pl.Float64), pl.Float64, pl.List(pl.Int64)),
    *(pl.List(pl.String), pl.List(pl.Float64), pl.List(pl.Float64), pl.Datetime("us", "UTC")),
)
SCHEMA = pl.Schema(zip(COLUMNS, TYPES, strict=True))
ROW_GROUP = 5000
"""Records that a row group holds, and that memory holds while it is written."""


def export(source: str, to: Path, since: datetime | None = None) -> int:
    """Write a log's records to a Parquet file, in the order of their times; give their number.

    Args:
        source: see `feedback_reader.read`.
        to: the file, which is there whole or not at all.
        since: the earliest time, with a time zone.

    Raises:
        FileExistsError: `to` is already there.
        FeedbackLogUnusableError, FeedbackLogUnavailableError, UsageError: see `feedback_reader.read`.
    """
    count = 0

    def tables(columns: Any, predicate: Any, num_rows: Any, batch_size: Any) -> Iterator[pl.DataFrame]:
        nonlocal count
        for page in pages(source, since):
            count += len(page)
            yield pl.DataFrame(map(values_of, page), schema=SCHEMA, orient="row")

    try:
        with file_written_whole(to) as file:
            register_io_source(tables, schema=SCHEMA).sink_parquet(file, row_group_size=ROW_GROUP)
    except (pl.exceptions.PolarsError, TypeError) as error:
        raise UsageError(f"to ({to}) cannot be written: {str(error).splitlines()[0]}") from error
    return count


def parquet_pages(path: Path, since: datetime | None, page: int) -> Iterator[list[Feedback]]:
    """The unchecked records of an exported file, some at a time.

    Raises:
        UsageError: the file is no such export, or damaged.
    """
    table = _scan(path)
    if since is not None:
        table = table.filter(pl.col("time") >= since)
    try:
        for batch in table.collect_batches(chunk_size=page, maintain_order=True):
            yield [feedback_of(row) for row in batch.iter_rows()]
    except pl.exceptions.PolarsError as error:
        raise _damaged(path, error) from error


def summarise_parquet(path: Path) -> list[tuple[Any, ...]]:
    """The fields of `feedback_reader.VersionCount`, by model version.

    Raises:
        UsageError: see `parquet_pages`.
    """
    sampled = (pl.col("mode") == "sampled").sum()
    first, last = pl.col("time").min().alias("first"), pl.col("time").max().alias("last")
    counted = _scan(path).group_by("model_id", "model_version").agg(pl.len(), sampled, first, last)
    try:
        return counted.sort("first", "model_id", "model_version").collect().rows()
    except pl.exceptions.PolarsError as error:
        raise _damaged(path, error) from error


def _scan(path: Path) -> pl.LazyFrame:
    try:
        found = pl.read_parquet_schema(path)
    except pl.exceptions.PolarsError as error:
        raise _damaged(path, error) from error
    for name, kind in SCHEMA.items():
        if found.get(name) != kind:
            raise UsageError(f"feedback log ({path}): column {name} ({found.get(name)}) must be {kind}")
    return pl.scan_parquet(path).select(COLUMNS)


def _damaged(path: Path, error: Exception) -> UsageError:
    return UsageError(f"feedback log ({path}) cannot be read: {str(error).splitlines()[0]}")
