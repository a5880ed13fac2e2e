"""The user's own log as a world: a reward model, fitted to what was shown, answers for the users.

A CSV or Parquet file has the columns context_id, item_id, reward and optionally propensity.
Axes: R interactions, C contexts, N items.
"""

from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from esr_trainer import reward_model
from esr_trainer.command_line import UsageError
from esr_trainer.reward_model import Interactions
from esr_trainer.table_files import read_table
from esr_trainer.world import World, check_size

COLUMNS = ("context_id", "item_id", "reward")
PROPENSITY = "propensity"
"""The optional column: the probability with which the logging policy showed the item, in (0, 1]."""

WEIGHTS = (0.01, 10.0)
"""Least and most of an inverse propensity, in units of their mean (DESIGN §4, off policy)."""


def logged_world(path: Path, source: str, seed: int) -> World:
    """The world of a log: every cell's expected reward is the fitted model's, its deviation that of the held-out part.

    Args:
        path: a CSV or Parquet file.
        source: what decides it, but the seed.
        seed: decides the fit.

    Raises:
        UsageError: the file cannot be read, or a row has no id, no finite reward or no propensity in (0, 1].
    """
    rows = read_log(path)
    (context_ids, contexts), (item_ids, items) = (ids_and_rows(rows[name]) for name in COLUMNS[:2])
    check_size(len(context_ids), len(item_ids))
    rewards = torch.from_numpy(rows["reward"].to_numpy().copy()).float()
    weights = weights_of(rows[PROPENSITY]) if PROPENSITY in rows.columns else torch.ones(len(rows))
    interactions = Interactions(contexts, items, rewards, weights)
    model, errors = reward_model.fit(interactions, len(context_ids), len(item_ids), seed, "fitting the reward model")
    expected = model.matrix()
    return World(
        environment="interactions",
        description=f"reward model of {path.name}, {len(rows):,} interactions of {len(context_ids)} contexts with "
        f"{len(item_ids)} items: {errors}",
        context_ids=context_ids,
        item_ids=item_ids,
        score=expected,
        expected_reward=expected,
        reward_std=torch.tensor(errors.model).sqrt().expand(expected.shape),
        source=f"{source}, world seed {seed}",
    )


def read_log(path: Path) -> pl.DataFrame:
    """The rows of a log, checked: ids as text, reward and propensity as float64.

    Raises:
        UsageError: see `logged_world`.
    """
    return check_log(read_table(path, "data"), f"data ({path})")


def check_log(table: pl.DataFrame, source: str) -> pl.DataFrame:
    """The rows of a log that was read as text, checked; `source` is how an error names it.

    Raises:
        UsageError: see `logged_world`.
    """
    if missing := [name for name in COLUMNS if name not in table.columns]:
        raise UsageError(f"{source} has no column {missing[0]}; a log needs {', '.join(COLUMNS)}")
    numbers = [name for name in ("reward", PROPENSITY) if name in table.columns]
    rows = table.select(*COLUMNS[:2], *(pl.col(name).cast(pl.Float64, strict=False) for name in numbers))
    if len(rows) < 2:
        raise UsageError(f"{source} has {len(rows)} rows; a model needs 2 or more")
    rules = {name: (pl.col(name).fill_null("") != "", "be there") for name in COLUMNS[:2]}
    rules["reward"] = (pl.col("reward").is_finite().fill_null(False), "be a finite number")
    if PROPENSITY in numbers:
        inside = ((pl.col(PROPENSITY) > 0) & (pl.col(PROPENSITY) <= 1)).fill_null(False)
        rules[PROPENSITY] = (inside, "be above 0 and at most 1")
    for name, (holds, rule) in rules.items():
        wrong = rows.select(holds).to_series().not_().arg_true()
        if len(wrong):
            raise UsageError(f"{source}: row {wrong[0] + 1} has {name} {table[name][wrong[0]]}; it must {rule}")
    return rows


def ids_and_rows(column: pl.Series) -> tuple[tuple[str, ...], Tensor]:
    """The distinct ids, in order, and where each value is among them."""
    ids = column.unique().sort()
    rows = column.replace_strict(ids, pl.int_range(len(ids), eager=True), return_dtype=pl.Int64)
    return tuple(ids.to_list()), torch.from_numpy(rows.to_numpy().copy())


def weights_of(propensity: pl.Series) -> Tensor:
    """Inverse propensities, clipped to WEIGHTS in units of their mean, of mean 1."""
    inverse = 1 / propensity.to_numpy()
    weights = np.clip(inverse / inverse.mean(), *WEIGHTS)
    return torch.from_numpy(weights / weights.mean()).float()
