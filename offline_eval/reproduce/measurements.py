"""MEASUREMENTS: what `reproduce` answers by rows of numbers: table 5, figure 4, gradients' variance, convergence."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from esr_trainer.command_line import UsageError
from offline_eval.grids import Grid
from offline_eval.reproduce.convergence import SIZES, Convergence, convergence_grids, convergences
from offline_eval.reproduce.gradient_variance import GradientError, gradient_errors, gradient_grid
from offline_eval.reproduce.inclusion_error import PAPER_NAMES, PaperError, paper_errors
from offline_eval.reproduce.paper_tables import ESTIMATORS
from offline_eval.reproduce.published import FIGURE_4, FIGURE_4_HERE, FIGURE_4_MIXTURE, FIGURE_4_SHAPES, TABLE_5
from offline_eval.reproduce.runtime import Timing, whole_runtime

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GROWING = (10, 50, 200)
"""K of figure 4's mixtures, M = 5."""


class Measurement(NamedTuple):
    """What is measured, where it is kept, and how it is shown."""

    file: str
    """Name of its result file, without its ending."""
    command: str
    """What the file says of its making."""
    row: Callable[..., Any]
    """Type of a row, from its fields."""
    measure: Callable[[str], Iterable[Any]]
    """Budget -> rows."""
    grids: Callable[[Sequence[Any]], list[Grid]]
    figure: str
    """File name of its figure without its ending."""
    draw: "Callable[[Sequence[Any]], Figure]"
    """Rows -> figure."""


def stored_rows(measurement: Measurement, folder: Path) -> list[Any]:
    """The rows of its result file; none where there is no file.

    Raises:
        UsageError: the file cannot be read.
    """
    path = folder / f"{measurement.file}.json"
    if not path.exists():
        return []
    try:
        return [measurement.row(**row) for row in json.loads(path.read_text())["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"results ({path}) cannot be read; move the file away to begin anew") from error


def table5_grids(rows: Sequence[PaperError]) -> list[Grid]:
    """The published row over ours: the error of whole sets, and that of the best item."""
    published = [column for group in TABLE_5 for column in group]
    head = ["", "", *(f"T={row.temperature:g} K={row.num_candidates}" for row in rows)]
    lines = [
        ["published", "mean logit gap", *(f"{column.gap:g}" for column in published)],
        ["", "CA-PG", *(f"{column.error:.1e}" for column in published)],
        ["here", "mean logit gap", *(f"{row.gap:.2f}" for row in rows)],
        *(["whole set", name, *(f"{row.of_sets[name]:.1e}" for row in rows)] for name in PAPER_NAMES),
        *(["best item", name, *(f"{row.of_best[name]:.1e}" for row in rows)] for name in PAPER_NAMES),
    ]
    caption = (
        "Whole set: the sum of |pi - pi of draws| over all items, over K. Best item: |pi - pi of draws| / pi of the "
        "item of the highest logit. Which of the two was published is not legible, nor are its K: here those whose "
        "mean logit gap is near the published one, on 3,327 N(0, 1) / T logits. 5,000 draws; ca-swr's share is "
        "taken K times, at most 1."
    )
    return [Grid("Table 5: relative error of the inclusion probability", head, lines, caption)] if rows else []


def figure4_grids(rows: Sequence[Timing]) -> list[Grid]:
    """Seconds per 1,000 steps, which are milliseconds per step, published and here; then M = 5 with growing K."""
    found = {row[:5]: row.milliseconds for row in rows}
    lines = []
    for name, label in ESTIMATORS.items():
        if name in FIGURE_4:
            lines.append([label, "published", *(f"{seconds:.1f}" for seconds in FIGURE_4[name])])
            own_machine = [f"{FIGURE_4_HERE[name]:g}" if shape == (10, 1) else "" for shape in FIGURE_4_SHAPES]
            lines.append([label, "its code, 2 cores", *own_machine])
        here = [found.get((name, 1000, *shape, 1)) for shape in FIGURE_4_SHAPES]
        lines.append([label, "here", *map(milliseconds_text, here)])
    head = ["", "", *(f"K={k} L={slots}" for k, slots in FIGURE_4_SHAPES)]
    caption = (
        "1,000 items, batch 128. Published: read off the figure, a MacBook Pro M1's CPU; beneath it the "
        "paper's code on a 2-core machine, one thread. Here: the median step's processor time, one thread."
    )
    growing = [
        [ESTIMATORS[name], *(milliseconds_text(found.get((name, 1000, count, 1, 5))) for count in GROWING)]
        for name in ("v-swr", "ca-swr", "ca-poisson")
    ]
    mixture = f"Published at K = 200: {ESTIMATORS['ca-swr']} {FIGURE_4_MIXTURE}."
    return [
        Grid("Figure 4: seconds per 1,000 steps, M = 1", head, lines, caption),
        Grid("Figure 4: seconds per 1,000 steps, M = 5, L = 1", ["", *(f"K={k}" for k in GROWING)], growing, mixture),
    ]


def milliseconds_text(milliseconds: float | None) -> str:
    """3.46, or that it was not run."""
    return "not run" if milliseconds is None else f"{milliseconds:.2f}"


def draw_runtime(rows: Sequence[Timing]) -> "Figure":
    """Bars against the floor."""
    from offline_eval.reproduce.plots import runtime_figure

    return runtime_figure(rows)


def draw_errors(rows: Sequence[PaperError]) -> "Figure":
    """Errors over K."""
    from offline_eval.reproduce.plots import errors_figure

    return errors_figure(rows)


def draw_variance(rows: Sequence[GradientError]) -> "Figure":
    """Variance and bias over K."""
    from offline_eval.reproduce.plots import variance_figure

    return variance_figure(rows)


def draw_convergence(rows: Sequence[Convergence]) -> "Figure":
    """Steps over N."""
    from offline_eval.reproduce.plots import convergence_figure

    return convergence_figure(rows)


MEASUREMENTS: Mapping[str, Measurement] = {
    "table5": Measurement(
        "table5",
        "python -m offline_eval reproduce table5",
        PaperError,
        lambda budget: paper_errors(500) if budget == "smoke" else paper_errors(5000),
        table5_grids,
        "table5",
        draw_errors,
    ),
    "figure4": Measurement(
        "runtime",
        "python -m offline_eval reproduce figure4",
        Timing,
        lambda budget: whole_runtime(2, False) if budget == "smoke" else whole_runtime(50, True),
        figure4_grids,
        "runtime",
        draw_runtime,
    ),
    "variance": Measurement(
        "variance",
        "python -m offline_eval reproduce variance",
        GradientError,
        lambda budget: gradient_errors(4) if budget == "smoke" else gradient_errors(),
        lambda rows: [gradient_grid(list(rows))] if rows else [],
        "variance",
        draw_variance,
    ),
    "convergence": Measurement(
        "convergence",
        "python -m offline_eval reproduce convergence",
        Convergence,
        lambda budget: convergences((30, 60), 1, 100) if budget == "smoke" else convergences(SIZES, 1, 4000),
        convergence_grids,
        "convergence",
        draw_convergence,
    ),
}
"""Name -> measurement."""
