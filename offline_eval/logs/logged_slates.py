"""Logs of slates as plain tables: a row per slot, the rows of a round one after the other.

Axes: R rounds of a page, L slots.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from esr_trainer.command_line import UsageError
from esr_trainer.logged_interactions import COLUMNS, PROPENSITY
from offline_eval.logs.logged_rounds import LoggedRounds
from offline_eval.logs.logged_tables import a_chance, a_number, checked_pages, there

ROUND, SLOT = "round_id", "slot"
CONTEXT, ITEM, REWARD = COLUMNS
MARGINAL = "slot_propensity"
"""May be there: the item's chance of its slot whatever the others hold; `propensity` is that given the slots above."""

SLATE_COLUMNS = (ROUND, SLOT, *COLUMNS, PROPENSITY)


def slate_rounds(path: Path, has_marginals: bool) -> Iterator[LoggedRounds]:
    """The rounds of a CSV or Parquet file of slates.

    Args:
        path: the file.
        has_marginals: whether it has MARGINAL.

    Raises:
        UsageError: it cannot be read, a value breaks its rule, or a round's rows are not its slots from 1 on.
    """
    numbers = (PROPENSITY, MARGINAL) if has_marginals else (PROPENSITY,)
    rules = {
        **{name: there(name) for name in (ROUND, CONTEXT, ITEM)},
        **{name: a_number(name) for name in (SLOT, REWARD)},
        **{name: a_chance(name) for name in numbers},
    }
    begun: pl.DataFrame | None = None
    first = 1
    for page in checked_pages(path, (ROUND, CONTEXT, ITEM), rules):
        rows = page if begun is None else pl.concat([begun, page])
        starts = starts_of(rows)
        check_slots(rows, starts, path, first)
        last = int(starts[-1]) if len(starts) else 0  # its next rows may be on the next page
        if last:
            yield side_by_side(rows[:last], starts[:-1])
        begun, first = rows[last:], first + last
    if begun is not None and len(begun):
        yield side_by_side(begun, np.zeros(1, np.int64))


def starts_of(rows: pl.DataFrame) -> np.ndarray:
    """Where each round's rows begin, (R,)."""
    return np.flatnonzero(rows.select(pl.col(ROUND).ne_missing(pl.col(ROUND).shift())).to_series().to_numpy())


def check_slots(rows: pl.DataFrame, starts: np.ndarray, path: Path, first: int) -> None:
    """Raise a UsageError that quotes the first row that is not its round's next slot, or of another context."""
    number = np.arange(len(rows))
    start = starts[np.searchsorted(starts, number, side="right") - 1] if len(starts) else number
    contexts = rows[CONTEXT]
    wanted = {SLOT: (rows[SLOT].to_numpy() == number - start + 1), CONTEXT: (contexts == contexts[start]).to_numpy()}
    for name, holds in wanted.items():
        for row in np.flatnonzero(~holds)[:1].tolist():
            rule = f"{row - start[row] + 1}, the next" if name == SLOT else f"{contexts[int(start[row])]}, the round's"
            shown = int(rows[SLOT][row]) if name == SLOT and float(rows[SLOT][row]).is_integer() else rows[name][row]
            raise UsageError(f"log ({path}): row {first + row} has {name} {shown}; it must be {rule}")


def side_by_side(rows: pl.DataFrame, starts: np.ndarray) -> LoggedRounds:
    """Whole rounds, whose rows begin at these places, as (R, L)."""
    lengths = np.diff(starts, append=len(rows))
    shape = len(starts), int(lengths.max())
    slot = rows[SLOT].to_numpy().astype(np.int64) - 1
    place = np.repeat(np.arange(len(starts)), lengths) * shape[1] + slot

    def padded(values: np.ndarray) -> np.ndarray:
        found = np.zeros(shape)
        found.flat[place] = values
        return found

    source = np.full(shape[0] * shape[1], -1)
    source[place] = np.arange(len(rows))
    taken = pl.Series(source).replace(-1, None)
    return LoggedRounds(
        contexts=rows[CONTEXT][starts],
        slate=rows[ITEM].gather(taken),
        rewards=padded(rows[REWARD].to_numpy()),
        log_propensities=padded(np.log(rows[PROPENSITY].to_numpy())),
        log_marginals=padded(np.log(rows[MARGINAL].to_numpy())) if MARGINAL in rows.columns else None,
    )
