"""How an evaluation from a log is shown: tables for people, a line for each verdict, and JSON.

{"log", "kind", "num_rounds", "logged_value", "baseline", "interval", "confidence", "calibration", "judged": [{"name",
"estimated": [{"estimator", "value", "difference", "overlap"}], "verdict"}], "best", "exit_code"}; an estimate is
{"mean", "low", "high"}, null where a log tells nothing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from esr_trainer.command_line import show
from offline_eval.comparison import plain
from offline_eval.comparison_tables import between, percent, signed
from offline_eval.intervals import CONFIDENCE, INTERVALS
from offline_eval.log_evaluation import LogEvaluation
from offline_eval.ope_error import OpeError
from offline_eval.verdict import EXIT_CODES, best_of


def show_log(found: LogEvaluation) -> None:
    """Print everything, the verdicts last."""
    show(estimates_table(found))
    show(overlap_table(found))
    show(log_gates_table(found))
    for judged in found.judged:
        print(f"verdict: {judged.verdict.decision} {judged.name}: {judged.verdict.because}")
    print(
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


def estimates_table(found: LogEvaluation) -> Table:
    """What each estimator finds of each candidate."""
    title = f"expected reward of a round, from {found.num_rounds:,} rounds that earned {found.logged_value.mean:.4f}"
    table = Table("policy", "estimator", "value", f"{percent(CONFIDENCE)} interval", title=title)
    table.add_column(f"minus {found.baseline}")
    table.add_column(f"{percent(found.confidence)} interval")
    for judged in found.judged:
        for one in judged.estimated:
            row = (f"{one.value.mean:.4f}", between(one.value), f"{one.difference.mean:+.4f}", signed(one.difference))
            table.add_row(judged.name, one.estimator, *row)
        table.add_section()
    return table


def overlap_table(found: LogEvaluation) -> Table:
    """How much of the log speaks of each candidate, and whether its propensities are right."""
    columns = ("policy", "weights of", "effective sample size", "largest weight", "its share", "support", "mean weight")
    table = Table(*columns, title="overlap with the log")
    for judged in found.judged:
        for overlap in dict.fromkeys(one.overlap for one in judged.estimated if one.overlap):
            table.add_row(
                judged.name,
                overlap.weight.removeprefix("log_").removesuffix("_ratios"),
                f"{overlap.effective_sample_size:.1f}",
                f"{overlap.largest_weight:.4g}",
                f"{overlap.largest_share:.2%}",
                f"{overlap.supported_share:.2%}",
                f"{overlap.mean_weight.mean:.4f} ({between(overlap.mean_weight)})",
            )
    if found.calibration:
        sums = found.calibration.mean_inverse_sum
        table.caption = f"mean sum of 1/propensity {sums.mean:.2f} ({between(sums)}), N = {found.calibration.num_items}"
    return table


def log_gates_table(found: LogEvaluation) -> Table:
    """Every gate of every candidate."""
    table = Table("candidate", "gate", "value", "must be", "", title="gates")
    for judged in found.judged:
        for gate in judged.verdict.gates:
            met = "met" if gate.passed else f"not met: {gate.failing_means}"
            table.add_row(judged.name, gate.name, f"{gate.value:.4g}", gate.rule, met)
    return table


def errors_table(errors: Sequence[OpeError]) -> Table:
    """How far the estimators are off where the true value is known."""
    columns = ("world", "logs", "estimator", "value", "bias", "error", "effective sample size", *INTERVALS, "regret")
    table = Table(*columns, title="true value, coverage of the 95 % intervals, regret of choosing among ten")
    for one in errors:
        size = one.effective_sample_size
        table.add_row(
            *(one.world, one.family, one.estimator, f"{one.true_value:.3f}", f"{one.bias:+.3f}"),
            f"{one.root_mean_squared_error:.3f}",
            "" if size is None else f"{size:.0f}",
            *(f"{one.coverage[name]:.1%}" if name in one.coverage else "" for name in INTERVALS),
            f"{one.regret:.3f} ± {one.regret_error:.3f}",
        )
    return table
