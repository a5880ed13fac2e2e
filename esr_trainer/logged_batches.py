"""Logged impressions to learn from: the server's own feedback log, an Open-Bandit-form CSV, or a plain log.

Axes: R impressions, C contexts, N items.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl
import sqlalchemy as sa
import torch
from torch import Tensor

from esr_trainer import feedback_log
from esr_trainer.command_line import UsageError, note
from esr_trainer.feedback_log import Feedback
from esr_trainer.logged_interactions import COLUMNS, PROPENSITY, check_log
from esr_trainer.logged_losses import LoggedBatch
from esr_trainer.relevance_oracles import world_labels
from esr_trainer.table_files import read_table
from esr_trainer.world import Catalogue, World

INCLUSION = "inclusion"
"""The column of the chance to be a candidate, as the feedback log tells it."""

OPEN_BANDIT = {"item_id": "item_id", "click": "reward", "propensity_score": PROPENSITY}
"""What the columns of the Open Bandit Dataset are called here (Saito et al. 2021)."""

USER_FEATURE = "user_feature_"
"""Its columns that tell contexts apart begin with this: it has no user ids."""

HELD_OUT = 0.1
"""The part of the impressions that nothing is learned from, and that a run is valued on."""
MAX_HELD_OUT = 10_000
"""At most, so that an evaluation of a large log takes no longer."""


class Table(NamedTuple):
    """What a log says."""

    impressions: pl.DataFrame
    """COLUMNS, and PROPENSITY and INCLUSION where it knows them."""
    items: tuple[str, ...] = ()
    """Items that it knows of beside those that were shown."""


@dataclass(frozen=True)
class Log:
    """A log, its ids turned into rows."""

    description: str
    """One line for people."""
    place: str
    """Its whole path, or its URL without the password."""
    context_ids: tuple[str, ...]
    """The log's own ids, or those of the world that it is of, C."""
    item_ids: tuple[str, ...]
    """The same of the items, N."""
    impressions: LoggedBatch
    """All of them, R; propensities of 1 where the log has none."""
    has_propensities: bool
    """Whether the log says how probably it showed what it showed."""
    fingerprint: str
    """SHA-256 of ids, rewards and propensities in their order."""


class Parts(NamedTuple):
    """A log's impressions."""

    learned: LoggedBatch
    held_out: LoggedBatch


def open_log(source: str, catalogue: Catalogue | None = None) -> Log:
    """Read a log; its content decides the kind.

    Args:
        source: the path of an SQLite or Parquet feedback log, of an Open-Bandit-form CSV, or of a CSV or Parquet file
            with the columns context_id, item_id, reward and optionally propensity; or a feedback log's URL.
        catalogue: a world's ids, which the log's must be among; None for the log's own.

    Raises:
        UsageError: it cannot be read, none of it can be learned from, or an id is not the world's.
    """
    name = "feedback log" if "://" in source else source  # a URL may hold a password
    place = sa.make_url(source).render_as_string() if "://" in source else str(Path(source).resolve())
    table = read_kind(source, name)
    impressions = table.impressions
    contexts = catalogue.context_ids if catalogue else tuple(impressions["context_id"].unique().sort())
    items = catalogue.item_ids if catalogue else tuple(sorted({*impressions["item_id"], *table.items}))
    rewards = numbers(impressions, "reward")
    propensities = (
        numbers(impressions, PROPENSITY) if PROPENSITY in impressions.columns else torch.ones(len(impressions))
    )
    batch = LoggedBatch(
        contexts=rows_of(impressions["context_id"], contexts, name),
        items=rows_of(impressions["item_id"], items, name),
        rewards=rewards,
        propensities=propensities,
        inclusions=numbers(impressions, INCLUSION) if INCLUSION in impressions.columns else propensities,
    )
    count = f"{len(impressions):,} impressions of {len(items)} items in {len(contexts)} contexts"
    return Log(
        description=f"{Path(name).name}, {count}",
        place=place,
        context_ids=contexts,
        item_ids=items,
        impressions=batch,
        has_propensities=PROPENSITY in impressions.columns,
        fingerprint=fingerprint(contexts, items, batch),
    )


def positives_of(world: World, above: float | None) -> Log:
    """What is relevant in a world, as impressions that its labels reward; see `world_labels`.

    Args:
        world: where everything is known.
        above: the least label, or None for labels in [0, 1].

    Raises:
        UsageError: nothing is relevant.
    """
    labels = world_labels(world, above)
    contexts, items = labels.nonzero(as_tuple=True)
    if not len(contexts):
        raise UsageError(f"relevance.relevant_above ({above}): no expected reward of the world is above it")
    even = torch.ones(len(contexts))
    batch = LoggedBatch(contexts, items, labels[contexts, items], even, even)
    return Log(
        description=f"{len(contexts):,} relevant pairs of {world.description}",
        place="",
        context_ids=world.context_ids,
        item_ids=world.item_ids,
        impressions=batch,
        has_propensities=False,
        fingerprint=hashlib.sha256(f"{world.fingerprint}, relevant above {above}".encode()).hexdigest(),
    )


def hold_out(log: Log, seed: int) -> Parts:
    """Hold out some impressions at random.

    Raises:
        UsageError: what is held out has no reward above 0, so that nothing could be told of a policy.
    """
    order = torch.randperm(len(log.impressions.rewards), generator=torch.Generator().manual_seed(seed))
    count = max(1, min(MAX_HELD_OUT, round(HELD_OUT * len(order))))
    parts = Parts(log.impressions.take(order[count:]), log.impressions.take(order[:count]))
    if not (parts.held_out.rewards > 0).any():
        raise UsageError(
            f"from_log: none of the {count} held-out impressions (every tenth, by --world-seed) has a reward above 0"
        )
    return parts


def read_kind(source: str, name: str) -> Table:
    """What the log says, whichever kind it is.

    Raises:
        UsageError: see `open_log`.
    """
    if "://" in source or is_feedback_log(Path(source)):
        return served(source, name)
    path = Path(source)
    table = read_table(path, "from_log")
    if {"click", "propensity_score"} <= set(table.columns):
        table = of_open_bandit(table)
    return Table(check_log(table, f"from_log ({path})"))


def is_feedback_log(path: Path) -> bool:
    """Whether a file is an SQLite database, or a Parquet file with the feedback log's columns.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
        if head.startswith(b"PAR1"):
            return "request_id" in pl.read_parquet_schema(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise UsageError(f"from_log ({path}) cannot be read: {reason}") from error
    return head.startswith(b"SQLite format 3")


def of_open_bandit(table: pl.DataFrame) -> pl.DataFrame:
    """The Open Bandit Dataset's impressions; a context is what its user features say together."""
    features = sorted(column for column in table.columns if column.startswith(USER_FEATURE))
    context = pl.concat_str(features, separator="/") if features else pl.lit("everybody")
    return table.rename(OPEN_BANDIT).with_columns(context.alias("context_id"))


def served(source: str, name: str) -> Table:
    """The slots of the rounds that were sampled: beta(a | x) = inclusion propensity x the LSR's probability.

    Greedy rounds have no support: nothing but what was shown could have been, so no weight makes up for the rest.

    Raises:
        UsageError: no round is left.
    """
    rows: list[tuple[str, str, float, float, float]] = []
    items: set[str] = set()
    refused: Counter[str] = Counter()
    count = 0
    for feedback in feedback_log.read(source):
        shown, count = feedback.shown, count + 1
        items.update(shown.candidates)
        if reason := unusable(feedback):
            refused[reason] += 1
            continue
        inclusion = dict(zip(shown.candidates, shown.inclusion_propensities, strict=True))
        for item, reward, chance in zip(feedback.slate, feedback.rewards, feedback.lsr_probabilities, strict=True):
            rows.append((shown.context_id, item, reward, inclusion[item] * chance, inclusion[item]))
    reasons = ", ".join(f"{number} {reason}" for reason, number in refused.items())
    problem = f"from_log ({name}): {refused.total()} of {count} rounds refused: {reasons}"
    if not rows:
        raise UsageError(problem if count else f"from_log ({name}) holds no round")
    if refused:
        note(problem)
    schema = dict(zip((*COLUMNS, PROPENSITY, INCLUSION), (pl.String, pl.String, *[pl.Float64] * 3), strict=True))
    return Table(pl.DataFrame(rows, schema, orient="row"), tuple(items))


def unusable(feedback: Feedback) -> str | None:
    """Why nothing can be learned from a round, or None."""
    if feedback.shown.mode == "greedy":
        return "greedy, which have no support"
    if not feedback.shown.context_id:
        return "without a context id"
    if not feedback.lsr_probabilities:
        return "without the LSR's probabilities"
    return None


def numbers(impressions: pl.DataFrame, column: str) -> Tensor:
    """A column as float32, (R,)."""
    return torch.from_numpy(impressions[column].to_numpy().copy()).float()


def rows_of(ids: pl.Series, known: Sequence[str], name: str) -> Tensor:
    """Where each id is among the known ones, (R,).

    Raises:
        UsageError: one is not there.
    """
    rows = ids.replace_strict(known, range(len(known)), default=None, return_dtype=pl.Int64)
    if rows.null_count():
        raise UsageError(f"from_log ({name}): {ids.name} {ids.filter(rows.is_null())[0]} is not in the world")
    return torch.from_numpy(rows.to_numpy().copy())


def fingerprint(contexts: Sequence[str], items: Sequence[str], impressions: LoggedBatch) -> str:
    """SHA-256 of what decides what is learned."""
    digest = hashlib.sha256("\0".join([*contexts, "", *items]).encode())
    for values in impressions:
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()
