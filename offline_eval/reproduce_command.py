"""`python -m offline_eval reproduce`."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveInt
from pydantic_settings import CliPositionalArg

from esr_trainer.command_line import Command, UsageError, note, show
from esr_trainer.config import DeviceName
from offline_eval.ma2020_command import Ma2020, WorldName

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from offline_eval.grids import Grid
    from offline_eval.reproduce.cells import Cell, CellResult
    from offline_eval.reproduce.measurements import Measurement

PaperName = Literal[
    "table2", "table3", "table4", "table5", "table6", "figure3", "figure4", "variance", "convergence", "ma2020"
]
StudyName = Literal["presets", "grid", "best", "where", "uniform-lsr", "premise", "held-out"]


class Reproduce(Command):
    """Run an experiment: many training runs, their means over seeds, and what was published beside them.

    Finished runs are kept in <results>/<name>.json and never computed again, by whichever experiment they were run; one
    that is stopped or killed goes on from <results>/unfinished. So the same command goes on where it was.
    """

    name: CliPositionalArg[PaperName | StudyName]
    """table2: K and the LSR; table3: slots and experts; table4: KuaiRec; table5: inclusion probabilities; table6:
    GRPO; figure3: learning curves, and how much sooner; figure4: runtime; variance: of gradients; convergence: steps
    over the size of the catalogue; ma2020: another paper's procedure, as the command of that name; presets: the
    paper's setting; grid: initialisation x optimizer x learning rate x entropy bonus; best: each estimator at its own
    best of grid; where: over K, M, L, LSR and world; uniform-lsr: what helps under it; premise: proxies on as many
    interactions; held-out: contexts and items that were never met."""
    budget: Literal["smoke", "short", "paper"] = "short"
    """smoke: 2 seeds, a few steps; short: 3 seeds, 50,000 steps of the paper's preset, 5,000 of ours; paper: 10 seeds,
    500,000 and 50,000 steps."""
    preset: Literal["both", "paper", "default"] = "both"
    """Run what one preset takes part in; its steps are fewer and dearer, or more and cheaper."""
    seeds: PositiveInt | None = None
    """Number of seeds; default the budget's."""
    workers: PositiveInt = 2
    """Processes, of one thread each."""
    device: DeviceName = "cpu"
    """Where the runs compute; on `cuda` they are runs of their own, with draws of their own."""
    shared: Path | None = Path("../shared")
    """Folder with golden/synthetic_env.npz and data/kuairec; where it is missing, generated worlds stand in."""
    results: Path = Path("offline_eval/results")
    """Folder of the results."""
    resume: Literal["auto", "never"] = "auto"
    """`auto` goes on with finished and half-finished runs; `never` refuses where the experiment's file is there."""
    world: WorldName | None = None
    """For ma2020: whose full labels; default kuairec-labels."""
    data: Path | None = None
    """For ma2020: the world's data; default KuaiRec's labels in `shared`."""
    pdf: bool = False
    """Write the figures as PDF too, beside PNG and SVG."""

    def run(self) -> Mapping[str, Any]:
        """Run what is missing; print and plot what is there."""
        from offline_eval.reproduce.measurements import MEASUREMENTS

        if self.name == "ma2020":
            return self.ma2020()
        for name, value in (("world", self.world), ("data", self.data)):
            if value is not None:
                raise UsageError(f"{name} ({value}) is for ma2020, not for {self.name}")
        measurement = MEASUREMENTS.get(self.name)
        path = self.results / f"{measurement.file if measurement else self.name}.json"
        if self.resume == "never" and path.exists():
            raise UsageError(f"resume (never): {path} is there; name another folder with --results, or leave it out")
        return self.measured(measurement, path) if measurement else self.learned()

    def ma2020(self) -> Mapping[str, Any]:
        """What the command of that name does."""
        labels = (self.shared or Path()) / "data" / "kuairec" / "small_matrix_gt2.npz"
        world = self.world or "kuairec-labels"
        return Ma2020(world=world, budget=self.budget, data=self.data or labels, results=self.results).run()

    def measured(self, measurement: "Measurement", path: Path) -> Mapping[str, Any]:
        """Measure, unless that was done; print and plot."""
        from rich.console import Console
        from rich.progress import track

        from offline_eval.provenance import provenance
        from offline_eval.reproduce.measurements import stored_rows

        rows = stored_rows(measurement, self.results)
        if rows:
            note(f"{path} is there and shown as it is; move it away to measure again")
        else:
            rows = list(track(measurement.measure(self.budget), self.name, console=Console(stderr=True)))
            content = provenance(f"{measurement.command} --budget {self.budget}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({**content, "rows": [row._asdict() for row in rows]}, indent=1))
        grids = measurement.grids(rows)
        self.show(grids, {measurement.figure: partial(measurement.draw, rows)})
        return {"results": str(path), "tables": [grid._asdict() for grid in grids]}

    def learned(self) -> Mapping[str, Any]:
        """Run what is missing; print and plot what is there."""
        from offline_eval.reproduce.cells import known_results
        from offline_eval.reproduce.experiments import EXPERIMENTS
        from offline_eval.reproduce.plan import BUDGETS, Plan

        budget = BUDGETS[self.budget]
        shared = self.shared if self.shared and self.shared.is_dir() else None
        if shared is None:
            note(f"shared ({self.shared}) is not a folder: generated worlds stand in for the published data")
        plan = Plan(budget._replace(seeds=self.seeds or budget.seeds), shared, self.results, self.device)
        experiment = EXPERIMENTS[self.name]
        cells = {cell.key: cell for cell in experiment.cells(plan) if self.preset in ("both", cell.config.preset)}
        self.check_device(list(cells.values()))
        known = known_results(self.results)
        known |= self.run_missing(cells, known)
        found = {key: known[key] for key in cells if key in known}
        if len(found) < len(cells):
            note(f"stopped: {len(found)} of {len(cells)} runs are there; the same command goes on")
        answer = experiment.answer(plan, found)
        self.show(answer.grids, answer.figures)
        return {"results": str(self.results), **answer.as_json()}

    def check_device(self, cells: Sequence["Cell"]) -> None:
        """Raise a UsageError where the device is not there, or a learner cannot compute on it."""
        import torch

        from offline_eval.reproduce.learners import ON_ANY_DEVICE

        if self.device == "cpu":
            return
        if not torch.cuda.is_available():
            raise UsageError(f"device ({self.device}): this machine, or this build of torch, has none")
        if others := [cell.learner for cell in cells if cell.learner not in ON_ANY_DEVICE]:
            raise UsageError(f"device ({self.device}): {others[0]} learns on the cpu alone")

    def run_missing(self, cells: Mapping[str, "Cell"], known: Mapping[str, "CellResult"]) -> dict[str, "CellResult"]:
        """Run what nobody has run; each result is stored as soon as it is there."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        from offline_eval.reproduce.cells import forget, read_results, write_results
        from offline_eval.reproduce.workers import run_cells

        path, unfinished = self.results / f"{self.name}.json", self.results / "unfinished"
        missing = [cell for key, cell in cells.items() if key not in known]
        own = {result.cell.key: result for result in read_results(path)}
        columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("", total=len(cells), completed=len(cells) - len(missing))
            for result in run_cells(missing, self.workers, unfinished):
                own[result.cell.key] = result
                write_results(path, self.command, list(own.values()))
                forget(result.cell, unfinished)
                progress.advance(task)
        return own

    @property
    def command(self) -> str:
        """What the result file says of its making."""
        seeds = f" --seeds {self.seeds}" if self.seeds else ""
        return f"python -m offline_eval reproduce {self.name} --budget {self.budget}{seeds}"

    def show(self, grids: Sequence["Grid"], figures: Mapping[str, Callable[[], "Figure"]]) -> None:
        """Print the tables; write the figures."""
        from offline_eval.grids import rich_table

        for grid in grids:
            show(rich_table(grid))
        if figures:
            from offline_eval.reproduce.plots import endings, save

            for name, draw in figures.items():
                written = save(draw(), self.results / name, endings(self.pdf))
                print(f"figure: {', '.join(map(str, written))}")
        print(f"results: {self.results}")
