"""What the runs of an experiment say together: means over seeds, steps to the optimum, paired differences."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from offline_eval.reproduce.cells import CellResult

MARKS = (0.2, 0.4, 1.0)
"""Shares of a run's steps at which its policy value is printed."""

NEAR = (0.95, 0.99)
"""Shares of the optimum whose first step is printed."""

SYSTEM = ("environment", "data", "world_seed", "lsr", "slot_weights", "candidates", "slate", "experts")
"""Settings that two runs must share for their difference to say something of what else differs."""

CONFIDENCE = 0.95


class Mean(NamedTuple):
    """A mean over seeds."""

    mean: float
    margin: float | None
    """Standard error, or half a confidence interval; None for one seed."""


class Row(NamedTuple):
    """The runs that differ by their seed alone."""

    settings: Mapping[str, Any]
    """What is not the same in all rows."""
    num_seeds: int
    failures: int
    values: Mapping[int, Mean]
    """Step -> policy value, with its standard error."""
    steps_to: Mapping[float, float | None]
    """Share of the optimum -> median first step that is valued at no less; None where half of the runs never are."""
    difference: Mean | None
    """Final policy value minus the reference's, paired by seed, with half its 95 % t interval."""
    references: Mapping[str, float]
    """Uniform, popularity, initial and optimal policy value."""
    results: Sequence[CellResult]

    @property
    def label(self) -> str:
        """What sets the row apart, in one line."""
        return ", ".join(f"{name} {value}" for name, value in self.settings.items())

    def as_json(self) -> dict[str, Any]:
        """Everything but the curves."""
        return {
            **self._asdict(),
            "results": None,
            "values": {step: mean._asdict() for step, mean in self.values.items()},
            "difference": self.difference._asdict() if self.difference else None,
        }


def summarise(results: Sequence[CellResult], reference: Mapping[str, str | float]) -> list[Row]:
    """Group results by everything but the seed, in their order.

    Args:
        results: of one experiment.
        reference: settings of the run that the others of the same SYSTEM are compared with.
    """
    if not results:
        return []
    groups: dict[str, list[CellResult]] = {}
    for result in results:
        alike = result.cell.model_copy(update={"config": result.cell.config.model_copy(update={"seed": 0})})
        groups.setdefault(alike.key, []).append(result)
    settings = [{"learner": g[0].cell.learner, **g[0].cell.model_dump(mode="json")["config"]} for g in groups.values()]
    varying = [name for name in settings[0] if name != "seed" and len({str(row[name]) for row in settings}) > 1]
    rows = []
    for own, group in zip(settings, groups.values(), strict=True):
        rivals = [
            rival
            for other, rival in zip(settings, groups.values(), strict=True)
            if all(other[name] == value for name, value in reference.items())
            and all(other[name] == own[name] for name in SYSTEM)
        ]
        rival = rivals[0] if reference and len(rivals) == 1 and rivals[0] is not group else None
        rows.append(row_of({name: own[name] for name in varying}, group, rival))
    return rows


def row_of(settings: Mapping[str, Any], group: Sequence[CellResult], rival: Sequence[CellResult] | None) -> Row:
    """One row of the summary."""
    last = group[0].cell.config.steps
    marks = dict.fromkeys(max(1, round(mark * last)) for mark in MARKS)
    values = {step: mean_and_error([value_at(result, step) for result in group]) for step in marks}
    optimum = group[0].references["optimal"]
    return Row(
        settings=settings,
        num_seeds=len(group),
        failures=sum(result.failure is not None for result in group),
        values=values,
        steps_to={share: median_step([first_step(result, share * optimum) for result in group]) for share in NEAR},
        difference=paired_difference(group, rival) if rival else None,
        references=group[0].references,
        results=group,
    )


def value_at(result: CellResult, step: int) -> float:
    """The policy value at the last evaluation up to a step; of a run that failed before, the last there is."""
    return result.policy_value[int(np.searchsorted(result.steps, step, side="right")) - 1]


def first_step(result: CellResult, value: float) -> float:
    """The first step that is valued at no less; infinite where there is none."""
    return next((step for step, v in zip(result.steps, result.policy_value, strict=True) if v >= value), float("inf"))


def median_step(steps: Sequence[float]) -> float | None:
    """The median, or None where half of the runs never got there."""
    middle = statistics.median(steps)
    return None if middle == float("inf") else middle


def mean_and_error(values: Sequence[float]) -> Mean:
    """Mean and standard error."""
    return Mean(statistics.fmean(values), float(stats.sem(values)) if len(values) > 1 else None)


def paired_difference(group: Sequence[CellResult], rival: Sequence[CellResult]) -> Mean | None:
    """The mean difference of the final values over the seeds that both have, with half its 95 % t interval."""
    final = {result.cell.config.seed: result.policy_value[-1] for result in rival}
    pairs = [
        result.policy_value[-1] - final[result.cell.config.seed] for result in group if result.cell.config.seed in final
    ]
    if not pairs:
        return None
    mean, error = mean_and_error(pairs)
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(pairs) - 1)
    return Mean(mean, None if error is None else float(error * quantile))
