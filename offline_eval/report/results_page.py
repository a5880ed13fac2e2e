"""What was reproduced, as sections of a report: the tables beside the paper's, the curves, the measurements."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from matplotlib.figure import Figure

from offline_eval.report.figures import Chart
from offline_eval.report.pages import figures_of, grids_of, is_stored
from offline_eval.report.report import Section

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
    if is_stored(name, results, budget):
        figures = figures_of(name, results, budget)
        command = f"python -m offline_eval reproduce {name} --budget {budget}"
        yield Section(
            TITLES[name], tables=grids_of(name, results, budget), charts=charts(name, figures), command=command
        )


def charts(name: str, figures: Mapping[str, Callable[[], Figure]]) -> list[Chart]:
    """An answer's figures."""
    return [Chart(figure, titled(figure), CAPTIONS.get(name, ""), draw) for figure, draw in figures.items()]


def titled(name: str) -> str:
    """figure3-paper -> Figure3, paper."""
    return name.replace("-", ", ").capitalize()
