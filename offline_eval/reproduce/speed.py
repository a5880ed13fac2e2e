"""Figure 3: learning curves, the first non-finite gradient, and how much sooner CA-PGs get where V-PG-SwR ends.

arXiv:2605.26385 says that CA-PGs reach 95 % of V-PG-SwR's final value about 3 times sooner.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scipy import stats

from esr_trainer.config import EstimatorName, PresetName
from offline_eval.grids import Grid
from offline_eval.reproduce.cells import Cell, CellResult
from offline_eval.reproduce.paper_tables import ESTIMATORS, PAPER_TABLES, PRESET_LABELS, PRESETS, cells_of
from offline_eval.reproduce.plan import Plan
from offline_eval.reproduce.summary import CONFIDENCE, mean_and_error

SHARE = 0.95
"""Of the rival's final value."""

RIVAL: EstimatorName = "v-swr"

CURVES = PAPER_TABLES["table2"]._replace(columns={"K=10": {"candidates": 10}})
"""Figure 3's runs are a column of table 2."""


class Sooner(NamedTuple):
    """How many times sooner an estimator gets there: the geometric mean over seeds."""

    ratio: float
    low: float
    high: float
    """95 % t interval of the mean of logarithms; nan for one seed."""
    num_seeds: int
    """Seeds in which it gets there at all."""


def curve_cells(plan: Plan) -> list[Cell]:
    """Every estimator at both presets, K = 10."""
    return cells_of(CURVES, plan)


def by_estimator(results: Sequence[CellResult], preset: PresetName) -> dict[str, list[CellResult]]:
    """The runs of a preset, by what the paper calls their estimator."""
    groups = {
        label: [r for r in results if r.cell.config.preset == preset and r.cell.config.estimator == name]
        for name, label in ESTIMATORS.items()
    }
    return {label: group for label, group in groups.items() if group}


def step_of(result: CellResult, value: float) -> float:
    """The step at which a curve first reaches a value, on the line between two evaluations; infinite if never."""
    before_step, before = result.steps[0], result.policy_value[0]
    for step, now in zip(result.steps, result.policy_value, strict=True):
        if now >= value:
            return before_step + (step - before_step) * ((value - before) / (now - before) if now > before else 1.0)
        before_step, before = step, now
    return math.inf


def sooner(group: Sequence[CellResult], rival: Sequence[CellResult]) -> Sooner | None:
    """Steps of the rival to SHARE of its own final value, over steps of the others to the same value, seed by seed."""
    rivals = {result.cell.config.seed: result for result in rival}
    logarithms = []
    for result in group:
        other = rivals.get(result.cell.config.seed)
        if other is None:
            continue
        target = SHARE * other.policy_value[-1]
        steps = step_of(result, target)
        if 0 < steps < math.inf:
            logarithms.append(math.log(step_of(other, target) / steps))
    if not logarithms:
        return None
    mean, error = mean_and_error(logarithms)
    half = math.nan if error is None else error * float(stats.t.ppf((1 + CONFIDENCE) / 2, len(logarithms) - 1))
    return Sooner(math.exp(mean), math.exp(mean - half), math.exp(mean + half), len(logarithms))


def first_non_finite_step(result: CellResult) -> int | None:
    """The step whose loss or gradient was not finite, or None: every step was."""
    found = re.match(r"step (\d+):", result.failure or "")
    return int(found[1]) if found else None


def speed_grid(found: Mapping[str, CellResult]) -> Grid:
    """For each preset and estimator: non-finite steps by seed, steps to the target, and how much sooner."""
    rows = []
    results = list(found.values())
    rival_label = ESTIMATORS[RIVAL]
    for preset in PRESETS:
        groups = by_estimator(results, preset)
        for label, group in groups.items():
            broken = [str(first_non_finite_step(result) or "none") for result in group]
            is_rival = label == rival_label
            ahead = None if is_rival else sooner(group, groups.get(rival_label, []))
            last = mean_and_error([result.policy_value[-1] for result in group]).mean
            final = f"{last:.3f} @{max(group[0].steps):,}"
            rows.append([PRESET_LABELS[preset], label, final, ", ".join(broken), sooner_text(ahead)])
    head = ["", "", "final value", "first non-finite gradient, by seed", f"sooner than {rival_label}"]
    caption = (
        f"Sooner: steps of {rival_label} to {SHARE:.0%} of its own final value over the estimator's steps to the same "
        "value (on the line between two evaluations), geometric mean over seeds with its 95 % t interval; final is "
        "what these runs end with. Published: about 3 times."
    )
    return Grid("Figure 3: learning curves, K = 10, L = 1, M = 1, optimal LSR", head, rows, caption)


def sooner_text(ahead: Sooner | None) -> str:
    """2.9 times (2.5 to 3.4; 3 seeds)."""
    if ahead is None:
        return ""
    interval = "" if math.isnan(ahead.low) else f"{ahead.low:.2f} to {ahead.high:.2f}; "
    return f"{ahead.ratio:.2f} times ({interval}{ahead.num_seeds} seed{'s' * (ahead.num_seeds > 1)})"
