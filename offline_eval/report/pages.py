"""Pages: Markdown whose tables are written from the stored results, between markers that name them."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from esr_trainer.command_line import UsageError
from offline_eval.grids import Grid, markdown
from offline_eval.reproduce.cells import known_results
from offline_eval.reproduce.experiments import EXPERIMENTS, Answer
from offline_eval.reproduce.measurements import MEASUREMENTS, stored_rows
from offline_eval.reproduce.plan import BUDGETS, Plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKED = re.compile(r"(<!-- results of (?P<name>[a-z0-9-]+)(: (?P<columns>.*?))? -->\n).*?(<!-- end -->)", re.DOTALL)
"""What is between the two markers is written, all of its columns or those named; what is around them stays."""

SHARED = Path("shared")
"""Stands for the folder of the data: the results name their files, wherever they lie."""


def rewritten(page: str, results: Path, budget: str) -> str:
    """The page with every marked part written anew.

    Args:
        page: Markdown.
        results: the folder of the results.
        budget: whose runs are shown; a name in BUDGETS.

    Raises:
        UsageError: a marker names nothing that can be reproduced, or a result file is none.
    """

    def write(found: re.Match[str]) -> str:
        grids = grids_of(found["name"], results, budget)
        if found["columns"]:
            grids = [with_columns(grid, found["columns"].split(", ")) for grid in grids]
        text = "\n\n".join(map(markdown, grids))
        return f"{found[1]}\n{text}\n\n{command_line(found['name'], budget)}\n{found[5]}"

    return MARKED.sub(write, page)


def with_columns(grid: Grid, names: Sequence[str]) -> Grid:
    """The table with some of its columns, and those that have no name.

    Raises:
        UsageError: it has no such column.
    """
    if unknown := set(names).difference(grid.head):
        raise UsageError(f"columns ({', '.join(sorted(unknown))}): must be of {', '.join(filter(None, grid.head))}")
    kept = [place for place, name in enumerate(grid.head) if not name or name in names]
    head, *rows = ([line[place] for place in kept] for line in (grid.head, *grid.rows))
    return grid._replace(head=head, rows=rows)


def command_line(name: str, budget: str) -> str:
    """How the numbers were made, and where they are."""
    return f"`python -m offline_eval reproduce {name} --budget {budget}`; rows in offline_eval/results."


def names_in(page: str) -> list[str]:
    """What the page's markers name."""
    return [found["name"] for found in MARKED.finditer(page)]


def figures_of(name: str, results: Path, budget: str) -> "Mapping[str, Callable[[], Figure]]":
    """File name without its ending -> draws the figure, from what is stored."""
    if name not in MEASUREMENTS:
        return answer_of(name, results, budget).figures
    measurement = MEASUREMENTS[name]
    rows = stored_rows(measurement, results)
    return {measurement.figure: partial(measurement.draw, rows)} if rows else {}


def grids_of(name: str, results: Path, budget: str) -> Sequence[Grid]:
    """The tables of an experiment or a measurement, from what is stored."""
    if name not in MEASUREMENTS:
        return answer_of(name, results, budget).grids
    measurement = MEASUREMENTS[name]
    return measurement.grids(stored_rows(measurement, results))


def is_stored(name: str, results: Path, budget: str) -> bool:
    """Whether anything of an experiment or a measurement is stored."""
    if name in MEASUREMENTS:
        return bool(stored_rows(MEASUREMENTS[name], results))
    return bool(answer_of(name, results, budget).rows)


def answer_of(name: str, results: Path, budget: str) -> Answer:
    """What the stored runs of an experiment say."""
    if name not in EXPERIMENTS:
        raise UsageError(f"results of ({name}): must be one of {', '.join((*EXPERIMENTS, *MEASUREMENTS))}")
    experiment, plan = EXPERIMENTS[name], Plan(BUDGETS[budget], SHARED, results)
    known = known_results(results)
    return experiment.answer(plan, {c.key: known[c.key] for c in experiment.cells(plan) if c.key in known})
