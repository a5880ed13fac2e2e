"""Tables that users bring: CSV or Parquet, read as text, since ids and categories are text here."""

from pathlib import Path

import polars as pl

from esr_trainer.command_line import UsageError


def read_table(path: Path, option: str) -> pl.DataFrame:
    """A CSV or Parquet file, every value as text (in Parquet, lists as lists of text).

    Args:
        path: its content decides which of the two it is.
        option: what the user gave it as.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            is_parquet = file.read(4) == b"PAR1"
        if not is_parquet:
            return pl.read_csv(path, infer_schema=False)
        table = pl.read_parquet(path)
        lists = [name for name, kind in table.schema.items() if isinstance(kind, pl.List)]
        return table.with_columns(pl.exclude(lists).cast(pl.String), pl.col(lists).cast(pl.List(pl.String)))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UsageError(f"{option} ({path}) cannot be read: {str(error).splitlines()[0]}") from error
