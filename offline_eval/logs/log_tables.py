"""How an evaluation from a log is shown: tables for people, a line for each verdict, and JSON.

{"log", "kind", "num_rounds", "logged_value", "baseline", "interval", "confidence", "calibration", "lsr", "judged":
[{"name", "estimated": [{"estimator", "value", "difference", "overlap"}], "verdict"}], "best", "exit_code"}; an estimate
is {"mean", "low", "high"}, null where a log tells nothing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from esr_trainer.command_line import show
from offline_eval.grids import Grid, rich_table
from offline_eval.intervals import CONFIDENCE, INTERVALS
from offline_eval.logs.log_evaluation import LogEvaluation
from offline_eval.logs.ope_error import OpeError
from offline_eval.replay.comparison import plain
from offline_eval.replay.comparison_tables import between, gates_grid, percent, signed
from offline_eval.verdict import EXIT_CODES, best_of


def show_log(found: LogEvaluation) -> None:
    """Print everything, the verdicts last."""
    gates = gates_grid([(judged.name, judged.verdict) for judged in found.judged])
    for grid in (estimates_grid(found), overlap_grid(found), *deciles_grids(found), gates):
        show(rich_table(grid))
    for judged in found.judged:
        print(f"verdict: {judged.verdict.decision} {judged.name}: {judged.verdict.because}")
    print(how_decided(found))


def how_decided(found: LogEvaluation) -> str:
    """What the intervals are worth, and which estimator decides."""
    return (
        f"intervals by {found.interval}, rounds independent; the first estimator decides, its difference at "
        f"{percent(found.confidence)}"
    )


def log_json(found: LogEvaluation) -> dict[str, Any]:
    """What `--json` prints."""
    best = found.judged[best_of([judged.verdict for judged in found.judged])]
    shown: dict[str, Any] = finite(plain(found))
    return {**shown, "best": best.name, "exit_code": EXIT_CODES[best.verdict.decision]}


def finite(value: Any) -> Any:
    """JSON has no number for what is not known: null."""
    if isinstance(value, Mapping):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def estimates_grid(found: LogEvaluation) -> Grid:
    """What each estimator finds of each candidate."""
    title = f"expected reward of a round, from {found.num_rounds:,} rounds that earned {found.logged_value.mean:.4f}"
    minus = (f"minus {found.baseline}", f"{percent(found.confidence)} interval")
    columns = ("policy", "estimator", "value", f"{percent(CONFIDENCE)} interval", *minus)
    rows = [
        (
            judged.name,
            one.estimator,
            f"{one.value.mean:.4f}",
            between(one.value),
            f"{one.difference.mean:+.4f}",
            signed(one.difference),
        )
        for judged in found.judged
        for one in judged.estimated
    ]
    return Grid(title, columns, rows)


def overlap_grid(found: LogEvaluation) -> Grid:
    """How much of the log speaks of each candidate, and whether its propensities are right."""
    columns = ("policy", "weights of", "effective sample size", "largest weight", "its share", "support", "mean weight")
    rows = [
        (
            judged.name,
            overlap.weight.removeprefix("log_").removesuffix("_ratios"),
            f"{overlap.effective_sample_size:.1f}",
            f"{overlap.largest_weight:.4g}",
            f"{overlap.largest_share:.2%}",
            f"{overlap.supported_share:.2%}",
            f"{overlap.mean_weight.mean:.4f} ({between(overlap.mean_weight)})",
        )
        for judged in found.judged
        for overlap in dict.fromkeys(one.overlap for one in judged.estimated if one.overlap)
    ]
    caption = ""
    if found.calibration:
        sums, num_items = found.calibration.mean_inverse_sum, found.calibration.num_items
        caption = f"mean sum of 1/propensity {sums.mean:.2f} ({between(sums)}), N = {num_items}"
    if found.lsr:
        caption += f"; the log's LSR as fitted: {found.lsr}"
    return Grid("overlap with the log", columns, rows, caption)


def deciles_grids(found: LogEvaluation) -> list[Grid]:
    """Inclusion probabilities against how often it happened, where that was looked at: one grid or none."""
    deciles = found.calibration.deciles if found.calibration else ()
    rows = [
        (str(number), f"{decile.predicted:.4f}", f"{decile.observed:.4f}", f"{decile.num_pairs:,}")
        for number, decile in enumerate(deciles, start=1)
    ]
    columns = ("decile", "mean propensity", "share that were candidates", "(round, item) pairs")
    return [Grid("calibration of the logged propensities", columns, rows)] if rows else []


def errors_grid(errors: Sequence[OpeError]) -> Grid:
    """How far the estimators are off where the true value is known."""
    columns = ("world", "logs", "estimator", "value", "bias", "error", "effective sample size", *INTERVALS, "regret")
    rows = [
        (
            *(one.world, one.family, one.estimator, f"{one.true_value:.3f}", f"{one.bias:+.3f}"),
            f"{one.root_mean_squared_error:.3f}",
            "" if one.effective_sample_size is None else f"{one.effective_sample_size:.0f}",
            *(f"{one.coverage[name]:.1%}" if name in one.coverage else "" for name in INTERVALS),
            f"{one.regret:.3f} ± {one.regret_error:.3f}",
        )
        for one in errors
    ]
    return Grid("true value, coverage of the 95 % intervals, regret of choosing among ten", columns, rows)
