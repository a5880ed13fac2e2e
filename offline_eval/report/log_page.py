"""What a log says of checkpoints, as sections of a report."""

import math
from collections.abc import Sequence
from functools import partial

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from offline_eval.logs.diagnostics import Decile
from offline_eval.logs.log_evaluation import JudgedByLog, LogEvaluation
from offline_eval.logs.log_tables import deciles_grids, estimates_grid, how_decided, overlap_grid
from offline_eval.replay.comparison_tables import gates_grid
from offline_eval.report.comparison_page import banners, draw_intervals, sentence
from offline_eval.report.figures import Chart
from offline_eval.report.report import Section


def log_sections(found: LogEvaluation, command: str) -> list[Section]:
    """The verdict and everything that led to it.

    Args:
        found: what was found.
        command: what the user ran.
    """
    verdicts = [(judged.name, judged.verdict) for judged in found.judged]
    charts = [
        Chart(
            f"estimates-{number}",
            f"Value of {judged.name}",
            "Each estimator with its 95 % interval; the first decides. Dashed: what the logged policy earned. "
            "Estimators that disagree say that the log speaks too little of the candidate.",
            partial(draw_estimates, judged, found.logged_value.mean),
        )
        for number, judged in enumerate(found.judged, start=1)
    ]
    words = [
        f"{found.num_rounds:,} rounds of {found.log} ({found.kind.replace('-', ' ')}), read as they were logged. "
        f"Baseline: {found.baseline}.",
        sentence(how_decided(found)),
    ]
    return [
        Section("Verdict", words, banners(verdicts), command=command),
        Section("Estimates", tables=[estimates_grid(found)], charts=charts),
        Section(
            "Overlap and gates",
            charts=calibration_charts(found),
            tables=[overlap_grid(found), *deciles_grids(found), gates_grid(verdicts)],
        ),
    ]


def calibration_charts(found: LogEvaluation) -> list[Chart]:
    """Logged propensities against what happened, where the baseline is the policy that logged."""
    deciles = found.calibration.deciles if found.calibration else ()
    caption = (
        "Mean inclusion probability under the baseline against the share of candidates, by decile of all (round, item) "
        "pairs. On the line the propensities are those of the draws; off it, the baseline did not log these rounds, or "
        "something drew otherwise."
    )
    draw = partial(draw_calibration, deciles)
    return [Chart("calibration", "Calibration of the propensities", caption, draw)] if deciles else []


def draw_calibration(deciles: Sequence[Decile]) -> Figure:
    """Predicted against observed, both logarithmic; deciles in which nothing happened lie on the floor."""
    figure, axes = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
    predicted, observed = [one.predicted for one in deciles], [one.observed for one in deciles]
    error = [1.96 * math.sqrt(max(one.predicted * (1 - one.predicted), 0) / one.num_pairs) for one in deciles]
    axes.errorbar(predicted, observed, yerr=error, fmt="o", capsize=3)
    ends = min(predicted), max(predicted)
    axes.plot(ends, ends, color="black", linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    axes.set_yscale("log", nonpositive="clip")
    axes.set_xlabel("inclusion probability, mean of a decile")
    axes.set_ylabel("share that were candidates")
    return figure


def draw_estimates(judged: JudgedByLog, logged_value: float) -> Figure:
    """Values with intervals, an estimator a line, the deciding one on top."""
    estimated = judged.estimated[::-1]
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.4 * len(estimated)), layout="constrained")
    draw_intervals(axes, [one.value for one in estimated], [one.estimator for one in estimated])
    axes.axvline(logged_value, color="black", linewidth=0.8, linestyle="--")
    axes.set_xlabel("expected reward of a round")
    return figure
