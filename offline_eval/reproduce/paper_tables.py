"""The published tables, run here: which runs fill them, and the two side by side.

Every estimator of the paper, and `ca-poisson`, at the paper's preset and at the default one, where the V family has its
baseline, which is its best of `reproduce grid`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from esr_trainer.config import V_FAMILY, EstimatorName, PresetName, TrainConfig
from offline_eval.grids import Grid
from offline_eval.reproduce.cells import Cell, CellResult
from offline_eval.reproduce.plan import KUAIREC, SYNTHETIC, Plan
from offline_eval.reproduce.published import TABLE_2, TABLE_3, TABLE_4, TABLE_6, AtSteps, Published, Rows
from offline_eval.reproduce.summary import Mean, mean_and_error, value_at

ESTIMATORS: Mapping[EstimatorName, str] = {
    "v": "V-PG",
    "v-swr": "V-PG-SwR",
    "ca": "CA-PG",
    "ca-swr": "CA-PG-SwR",
    "ca-poisson": "ca-poisson (ours)",
}
"""Estimator -> what the paper calls it."""

UNSURE = ("v", "ca")
"""Estimators whose published values may be taken where their run overflowed: ours are not held against them."""

PRESETS: Sequence[PresetName] = ("paper", "default")

QUANTILE = 1.96
"""Of the normal distribution, two-sided 95 %."""

SEMI_SYNTHETIC = "semi-synthetic KuaiRec matrix"
"""What the matrix of the shared folder is called in every table and caption."""

STAND_IN = "a generated world"
GENERATED = Path()
WORLDS: Mapping[Path, str] = {
    SYNTHETIC: "the paper's synthetic world",
    KUAIREC: f"the {SEMI_SYNTHETIC}",
    GENERATED: STAND_IN,
}
"""Data -> what it is called."""


class PaperTable(NamedTuple):
    """A published table, and how its runs are set."""

    title: str
    columns: Mapping[str, Mapping[str, Any]]
    """Label -> settings of its runs."""
    published: Rows
    data: Path = SYNTHETIC
    share: float = 1
    """Of the budget's steps of the default preset, where a step is dear."""
    is_comparable: bool = True
    """Whether the runs have the paper's own data."""


class Value(NamedTuple):
    """What the runs of a place in a table reached."""

    steps: int
    mean: Mean
    num_seeds: int
    failures: int
    leaves: bool
    """Whether it lies outside the published value's interval; never where the two are not comparable."""


def config_of(
    table: PaperTable, plan: Plan, preset: PresetName, estimator: EstimatorName, settings: Mapping[str, Any]
) -> TrainConfig:
    """The settings of a place in a table, but for the seed."""
    if preset == "paper":
        own: dict[str, Any] = {"preset": "paper", "steps": plan.budget.paper_steps}
    else:
        baseline = {"variance_reduction": "baseline"} if estimator in V_FAMILY else {}
        own = {"steps": max(1, round(table.share * plan.budget.steps)), **baseline}
    return plan.config(table.data, **{"estimator": estimator, **own, **settings})


def cells_of(table: PaperTable, plan: Plan) -> list[Cell]:
    """Every run of a table."""
    configs = [
        config_of(table, plan, preset, estimator, settings)
        for preset in PRESETS
        for settings in table.columns.values()
        for estimator in ESTIMATORS
    ]
    return plan.cells(*configs)


def values_of(
    table: PaperTable, plan: Plan, found: Mapping[str, CellResult], place: tuple[PresetName, EstimatorName, str]
) -> list[Value]:
    """What the finished runs of a place reached: at the published steps that they came to, else at their last.

    Args:
        table: the table.
        plan: the budget.
        found: finished runs by their key.
        place: preset, estimator, column.
    """
    preset, estimator, column = place
    config = config_of(table, plan, preset, estimator, table.columns[column])
    results = [found[cell.key] for cell in plan.cells(config) if cell.key in found]
    if not results:
        return []
    published = table.published.get(estimator, {}).get(column, {})
    is_comparable = table.is_comparable and preset == "paper" and estimator not in UNSURE
    steps = [step for step in published if step <= config.steps] if preset == "paper" else []
    values = []
    for step in steps or [config.steps]:
        mean = mean_and_error([value_at(result, step) for result in results])
        failures = sum(result.failure is not None for result in results)
        outside = is_comparable and step in published and leaves(mean, published[step])
        values.append(Value(step, mean, len(results), failures, outside))
    return values


def leaves(ours: Mean, published: Published) -> bool:
    """Whether two means differ by more than 1.96 standard errors of their difference; unknown for one seed: False."""
    if ours.margin is None:
        return False
    return abs(ours.mean - published.mean) > QUANTILE * math.hypot(ours.margin, published.error)


def paper_grid(table: PaperTable, plan: Plan, found: Mapping[str, CellResult]) -> Grid:
    """The published values, and beneath them what the runs reached."""
    table, rows = as_run(table, plan), []
    for estimator, label in ESTIMATORS.items():
        if published := table.published.get(estimator):
            steps = steps_text(next(iter(published.values())))
            rows.append([label, f"published {steps}", *(published_text(published[name]) for name in table.columns)])
        for preset in PRESETS:
            places = [values_of(table, plan, found, (preset, estimator, column)) for column in table.columns]
            steps = steps_text([value.steps for value in max(places, key=len)])
            rows.append([label, f"{PRESET_LABELS[preset]} {steps}".strip(), *map(values_text, places)])
    return Grid(table.title, ["", "", *table.columns], rows, caption_of(table))


PRESET_LABELS: Mapping[PresetName, str] = {"paper": "paper's preset", "default": "default preset"}


def as_run(table: PaperTable, plan: Plan) -> PaperTable:
    """The table on the world that its runs have."""
    if plan.shared is not None:
        return table
    return table._replace(title=f"{table.title} ({STAND_IN} instead)", data=GENERATED, is_comparable=False)


def caption_of(table: PaperTable) -> str:
    """How a table is to be read."""
    text = "Policy value @gradient steps: mean (standard error; seeds); published: mean (standard error), 10 seeds."
    if table.is_comparable:
        text += (
            " †: at the paper's preset, further from the published value than 1.96 √(se² + se²)"
            " (V-PG and CA-PG are not compared: theirs may be taken at overflow)."
        )
    else:
        text += f" Ours are on {WORLDS[table.data]}, theirs on the original data: order and shape alone compare."
    return text


def steps_text(steps: Iterable[int]) -> str:
    """@50K / @500K."""
    return " / ".join(f"@{thousands(step)}" for step in steps)


def published_text(values: AtSteps) -> str:
    """7.68 (0.03) / 8.33 (0.03)."""
    return " / ".join(f"{value.mean:#.3g} ({value.error:.2f})" for value in values.values())


def values_text(values: Sequence[Value]) -> str:
    """What a place of a table shows."""
    return " / ".join(map(value_text, values)) or "not run"


def value_text(value: Value) -> str:
    """7.803 (0.011; 3)."""
    error = "" if value.mean.margin is None else f"{value.mean.margin:.3f}; "
    failed = f", {value.failures} failed" if value.failures else ""
    return f"{value.mean.mean:.3f} ({error}{value.num_seeds}{failed})" + (" †" if value.leaves else "")


def thousands(steps: int) -> str:
    """50000 -> 50K."""
    return f"{steps // 1000}K" if steps % 1000 == 0 else f"{steps:,}"


def by_candidates(*counts: int) -> dict[str, dict[str, Any]]:
    """A column per K."""
    return {f"K={count}": {"candidates": count} for count in counts}


PAPER_TABLES: Mapping[str, PaperTable] = {
    "table2": PaperTable(
        "Table 2: K and the LSR, on the paper's synthetic world",
        by_candidates(5, 10, 20) | {name: {"lsr": name} for name in ("optimal", "noisy", "uniform", "anti")},
        TABLE_2,
    ),
    "table3": PaperTable(
        "Table 3: slots L and experts M, on the paper's synthetic world (K = 10; L = 5 sums the slots)",
        {f"L={slate} M={experts}": {"slate": slate, "experts": experts} for slate in (1, 5) for experts in (1, 5)},
        TABLE_3,
    ),
    "table4": PaperTable(
        f"Table 4: {SEMI_SYNTHETIC}", by_candidates(50, 100, 200), TABLE_4, KUAIREC, share=0.4, is_comparable=False
    ),
    "table6": PaperTable(
        "Table 6: GRPO (8 slates per context, rewards shifted by 2 for the CA family), M = 5, synthetic world",
        {
            column: {**settings, "experts": 5, "variance_reduction": "grpo"}
            for column, settings in by_candidates(20, 50, 100, 200).items()
        },
        TABLE_6,
        share=0.4,
    ),
}
"""Name -> table."""
