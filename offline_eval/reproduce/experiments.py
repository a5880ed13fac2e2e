"""EXPERIMENTS: every question that `reproduce` answers by runs: the paper's tables, its curves, and our own studies."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from offline_eval.grids import Grid
from offline_eval.reproduce.cells import Cell, CellResult
from offline_eval.reproduce.paper_tables import PAPER_TABLES, PRESET_LABELS, PRESETS, PaperTable, cells_of, paper_grid
from offline_eval.reproduce.plan import Plan
from offline_eval.reproduce.speed import by_estimator, curve_cells, speed_grid
from offline_eval.reproduce.studies import STUDIES, Study
from offline_eval.reproduce.summary import Row, summarise
from offline_eval.reproduce.tables import experiment_grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CURVES = 12
"""Rows up to which a plot can be read."""


class Answer(NamedTuple):
    """What the finished runs of an experiment say."""

    grids: Sequence[Grid]
    figures: Mapping[str, "Callable[[], Figure]"]
    """File name without its ending -> draws it."""
    rows: Sequence[Row]
    """The runs that differ by their seed alone."""

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {"rows": [row.as_json() for row in self.rows], "tables": [grid._asdict() for grid in self.grids]}


Found = Mapping[str, CellResult]
"""The finished cells of an experiment, by their key."""


class Experiment(NamedTuple):
    """A question, the runs that answer it, and how the answer is shown."""

    cells: Callable[[Plan], Sequence[Cell]]
    answer: Callable[[Plan, Found], Answer]


def study_answer(name: str, study: Study, plan: Plan, found: Found) -> Answer:
    """Means, steps to the optimum and paired differences; curves where they can be told apart."""
    rows = summarise(list(found.values()), study.reference)

    def draw() -> "Figure":
        from offline_eval.reproduce.plots import curves_figure

        return curves_figure({row.label: row.results for row in rows}, study.question)

    figures = {name: draw} if rows and len(rows) <= MOST_CURVES else {}
    return Answer([experiment_grid(rows, study.question, study.reference)], figures, rows)


def table_answer(table: PaperTable, plan: Plan, found: Found) -> Answer:
    """The paper's numbers beside ours."""
    return Answer([paper_grid(table, plan, found)], {}, summarise(list(found.values()), {}))


def curves_answer(plan: Plan, found: Found) -> Answer:
    """A figure per preset, and what is claimed of the curves."""

    def draw(groups: Mapping[str, Sequence[CellResult]], title: str) -> "Figure":
        from offline_eval.reproduce.plots import curves_figure

        return curves_figure(groups, title)

    figures = {
        f"figure3-{preset}": partial(draw, groups, f"Synthetic world, K = 10, {PRESET_LABELS[preset]}")
        for preset in PRESETS
        if (groups := by_estimator(list(found.values()), preset))
    }
    return Answer([speed_grid(found)], figures, summarise(list(found.values()), {}))


EXPERIMENTS: Mapping[str, Experiment] = {
    **{
        name: Experiment(partial(cells_of, table), partial(table_answer, table)) for name, table in PAPER_TABLES.items()
    },
    "figure3": Experiment(curve_cells, curves_answer),
    **{name: Experiment(study.cells, partial(study_answer, name, study)) for name, study in STUDIES.items()},
}
"""Name -> experiment."""
