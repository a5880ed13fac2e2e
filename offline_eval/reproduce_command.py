"""`python -m offline_eval reproduce`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt
from pydantic_settings import CliPositionalArg

from esr_trainer.command_line import Command, note, show

ExperimentName = Literal["presets", "grid", "best", "where", "uniform-lsr", "premise", "held-out"]

MOST_CURVES = 12
"""Rows up to which a plot can be read."""


class Reproduce(Command):
    """Run an experiment: many training runs, their means over seeds, and paired differences.

    Finished runs are kept in <results>/<name>.json and never computed again, so an experiment that was stopped goes on
    where it was.
    """

    name: CliPositionalArg[ExperimentName]
    """presets: the paper's setting; grid: initialisation x optimizer x learning rate x entropy bonus; best: each
    estimator at its own best of grid; where: over K, M, L, LSR and world; uniform-lsr: what helps under it; premise:
    proxies on as many interactions; held-out: contexts and items that were never met."""
    budget: Literal["smoke", "short", "paper"] = "short"
    """smoke: 2 seeds, seconds a run; short: 3 seeds, 50,000 steps of the paper's preset, 5,000 of ours; paper: 10
    seeds, 500,000 and 50,000 steps."""
    seeds: PositiveInt | None = None
    """Number of seeds; default the budget's."""
    workers: PositiveInt = 2
    """Processes, of one thread each."""
    shared: Path | None = Path("../shared")
    """Folder with golden/synthetic_env.npz and data/kuairec; where it is missing, generated worlds stand in."""
    results: Path = Path("offline_eval/results")
    """Folder of the results."""

    def run(self) -> Mapping[str, Any]:
        """Run what is missing; print and plot what is there."""

        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        from offline_eval.cells import read_results, run_cells, write_results
        from offline_eval.experiments import BUDGETS, EXPERIMENTS, Plan
        from offline_eval.plots import plot_curves
        from offline_eval.summary import summarise
        from offline_eval.tables import experiment_table

        experiment = EXPERIMENTS[self.name]
        budget = BUDGETS[self.budget]
        shared = self.shared if self.shared and self.shared.is_dir() else None
        if shared is None:
            note(f"shared ({self.shared}) is not a folder: generated worlds stand in for the published data")
        plan = Plan(budget._replace(seeds=self.seeds or budget.seeds), shared, self.results)
        cells = {cell.key: cell for cell in experiment.cells(plan)}
        path = self.results / f"{self.name}.json"
        found = {result.cell.key: result for result in read_results(path)}
        missing = [cell for key, cell in cells.items() if key not in found]
        command = f"python -m offline_eval reproduce {self.name} --budget {self.budget}" + (
            f" --seeds {self.seeds}" if self.seeds else ""
        )
        columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("", total=len(cells), completed=len(cells) - len(missing))
            for result in run_cells(missing, self.workers):
                found[result.cell.key] = result
                write_results(path, command, list(found.values()))
                progress.advance(task)
        rows = summarise([found[key] for key in cells], experiment.reference)
        show(experiment_table(rows, experiment.question, experiment.reference))
        if len(rows) <= MOST_CURVES:
            plot_curves(rows, experiment.question, path.with_suffix(".png"))
        print(f"results: {path}")
        return {"results": str(path), "rows": [row.as_json() for row in rows]}
