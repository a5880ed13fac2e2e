"""What was reproduced, as sections of a report: the tables beside the paper's, the curves, the measurements."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from offline_eval.cells import known_results
from offline_eval.experiments import EXPERIMENTS, Answer
from offline_eval.figures import Chart
from offline_eval.measurements import MEASUREMENTS, stored_rows
from offline_eval.pages import SHARED
from offline_eval.plan import BUDGETS, Plan
from offline_eval.report import Section

TITLES: Mapping[str, str] = {
    "table2": "Table 2: candidates and late-stage ranker",
    "table3": "Table 3: slots and experts",
    "table4": "Table 4: KuaiRec",
    "table5": "Table 5: error of the inclusion probability",
    "table6": "Table 6: GRPO",
    "figure3": "Figure 3: learning curves",
    "figure4": "Figure 4: runtime of a training step",
    "variance": "Bias and variance of the gradients",
}
"""What is shown of the stored results, in this order."""

CAPTIONS: Mapping[str, str] = {
    "figure3": "Means over seeds in a band from the lowest to the highest seed; dashed: the optimum.",
    "figure4": "Multiples of what no implementation can leave out: the products, the noise and the top K.",
    "table5": "Relative error against draws; lower is better.",
    "variance": "One sample's variance and bias, relative to the exact gradient: V-PG's variance grows with K, CA-PG's "
    "does not (Theorem 3.1).",
}


def results_sections(results: Path, budget: str) -> list[Section]:
    """A section for each result of TITLES that is stored.

    Args:
        results: the folder of the results.
        budget: whose runs are shown; a name in BUDGETS.

    Raises:
        UsageError: a result file cannot be read.
    """
    return [section for name in TITLES for section in section_of(name, results, budget)]


def section_of(name: str, results: Path, budget: str) -> Iterator[Section]:
    """The section of one result, where there is any."""
    command = f"python -m offline_eval reproduce {name} --budget {budget}"
    if name in MEASUREMENTS:
        measurement = MEASUREMENTS[name]
        if rows := stored_rows(measurement, results):
            yield section(name, Answer(measurement.grids(rows), {name: partial(measurement.draw, rows)}, []), command)
        return
    experiment, plan = EXPERIMENTS[name], Plan(BUDGETS[budget], SHARED, results)
    known = known_results(results)
    if found := {cell.key: known[cell.key] for cell in experiment.cells(plan) if cell.key in known}:
        yield section(name, experiment.answer(plan, found), command)


def section(name: str, answer: Answer, command: str) -> Section:
    """Tables and charts of an answer."""
    return Section(TITLES[name], tables=answer.grids, charts=charts(name, answer.figures), command=command)


def charts(name: str, figures: Mapping[str, Callable[[], Figure]]) -> list[Chart]:
    """An answer's figures."""
    return [Chart(figure, titled(figure), CAPTIONS.get(name, ""), draw) for figure, draw in figures.items()]


def titled(name: str) -> str:
    """figure3-paper -> Figure3, paper."""
    return name.replace("-", ", ").capitalize()
