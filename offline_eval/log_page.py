"""What a log says of checkpoints, as sections of a report."""

from functools import partial

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from offline_eval.comparison_page import banners, draw_intervals, sentence
from offline_eval.comparison_tables import gates_grid
from offline_eval.figures import Chart
from offline_eval.log_evaluation import JudgedByLog, LogEvaluation
from offline_eval.log_tables import deciles_grids, estimates_grid, how_decided, overlap_grid
from offline_eval.report import Section


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
        Section("Overlap and gates", tables=[overlap_grid(found), *deciles_grids(found), gates_grid(verdicts)]),
    ]


def draw_estimates(judged: JudgedByLog, logged_value: float) -> Figure:
    """Values with intervals, an estimator a line, the deciding one on top."""
    estimated = judged.estimated[::-1]
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.4 * len(estimated)), layout="constrained")
    draw_intervals(axes, [one.value for one in estimated], [one.estimator for one in estimated])
    axes.axvline(logged_value, color="black", linewidth=0.8, linestyle="--")
    axes.set_xlabel("expected reward of a round")
    return figure
