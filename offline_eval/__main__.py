"""`python -m offline_eval`: judge checkpoints before they go live."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt
from pydantic_settings import CliApp, CliPositionalArg, CliSubCommand
from rich.table import Table

from esr_trainer.command_line import Command, Options, main, note, show
from esr_trainer.config import LateStageRankerName, SlotWeightsName

ExperimentName = Literal["presets", "grid", "best", "where", "uniform-lsr", "premise", "held-out"]

MOST_CURVES = 12
"""Rows up to which a plot can be read."""


class Compare(Command):
    """Replay the users of the runs' world through each checkpoint: policy value, 95 % interval, paired difference.

    Beside them: one popular list for everybody, random candidates, the optimum, and each checkpoint with its contexts
    permuted, which shows how much of its value comes from knowing the user.
    """

    candidate: CliPositionalArg[list[Path]]
    """Run or checkpoint directories to judge."""
    baseline: Path | None = None
    """Run or checkpoint directory that they are compared with; default one popular list for everybody."""
    data: Path | None = None
    """Where the world's file is now, if it was moved since training."""
    lsr: LateStageRankerName | Path | None = None
    """Judge with this late-stage ranker (a name, a file or a run) instead of the one trained with."""
    slot_weights: SlotWeightsName | None = None
    """Judge with these slot weights."""
    candidates: PositiveInt | None = None
    """Judge with this K."""
    slate: PositiveInt | None = None
    """Judge with this L."""

    def run(self) -> Mapping[str, Any]:
        """Compare, and print a table."""
        from offline_eval.compare import SYSTEM_SETTINGS, compare

        overrides = self.model_dump(mode="json", include=set(SYSTEM_SETTINGS), exclude_none=True)
        found = compare(self.candidate, self.baseline, self.data, overrides)
        note(f"world: {found.world}")
        note(f"system: {', '.join(f'{name} {value}' for name, value in found.system.items())}")
        table = Table("policy", "policy value", "95 % interval", f"minus {found.baseline}", "95 % interval", "permuted")
        table.title = f"expected reward over {found.num_contexts} contexts"
        table.add_row("uniform", f"{found.uniform_policy_value:.4f}", "", "", "", "")
        for judged in found.judged:
            value, difference, permuted = judged.policy_value, judged.difference, judged.permuted
            table.add_row(
                judged.name,
                f"{value.mean:.4f}",
                f"{value.low:.4f} to {value.high:.4f}",
                f"{difference.mean:+.4f}" if difference else "",
                f"{difference.low:+.4f} to {difference.high:+.4f}" if difference else "baseline",
                f"{permuted.mean:.4f}" if permuted else "",
            )
        table.add_row("optimum", f"{found.optimal_policy_value:.4f}", "", "", "", "")
        show(table)
        return {
            **found._asdict(),
            "judged": [
                {
                    "name": judged.name,
                    "policy_value": judged.policy_value._asdict(),
                    "difference": judged.difference._asdict() if judged.difference else None,
                    "permuted": judged.permuted._asdict() if judged.permuted else None,
                }
                for judged in found.judged
            ],
        }


class Runtime(Command):
    """Time a training step against its floor, the kernels that no implementation can leave out, on one thread.

    Prints milliseconds (the median of many steps, all estimators in turn) and the multiple of the floor; writes
    runtime.json and runtime.png.
    """

    out: Path = Path("offline_eval/results")
    """Directory of the results."""
    repeats: PositiveInt = 50
    """Timed steps of each row."""
    large: bool = True
    """Time 10,000 and 100,000 items too."""

    def run(self) -> Mapping[str, Any]:
        """Measure, print, write."""
        import json
        import os

        os.environ["OMP_NUM_THREADS"] = "1"
        import torch
        from rich.console import Console
        from rich.progress import Progress

        from esr_trainer.estimators import ESTIMATORS
        from offline_eval.plots import plot_runtime
        from offline_eval.provenance import provenance
        from offline_eval.runtime import LARGE, SHAPES, Timing, runtime

        torch.set_num_threads(1)
        names: list[Any] = [name for name in ESTIMATORS if name != "top1"]  # top1 is ca-swr
        plan: list[tuple[int, tuple[tuple[int, int, int], ...], int]] = [(1000, SHAPES, self.repeats)]
        plan += [(num_items, ((100, 1, 1),), max(3, 10 * self.repeats // (num_items // 1000))) for num_items in LARGE]
        rows: list[Timing] = []
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("timing", total=(len(SHAPES) + len(LARGE) * self.large) * len(names))
            for num_items, shapes, repeats in plan[: None if self.large else 1]:
                for row in runtime(names, shapes, num_items, repeats):
                    rows.append(row)
                    progress.advance(task)
        table = Table("items", "K, L, M", "floor ms", *names, title="ms per training step (multiple of the floor)")
        for start in range(0, len(rows), len(names)):
            group = rows[start : start + len(names)]
            shape = f"{group[0].num_candidates}, {group[0].num_slots}, {group[0].num_experts}"
            cells = [f"{row.milliseconds:.2f} ({row.multiple:.1f})" for row in group]
            table.add_row(f"{group[0].num_items:,}", shape, f"{group[0].floor_milliseconds:.2f}", *cells)
        show(table)
        result = {**provenance("python -m offline_eval runtime"), "rows": [row._asdict() for row in rows]}
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "runtime.json").write_text(json.dumps(result, indent=1))
        plot_runtime(rows, self.out / "runtime.png")
        print(f"written: {self.out / 'runtime.json'}, {self.out / 'runtime.png'}")
        return result


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


class Inclusion(Command):
    """Compare the inclusion probabilities of the CA family with draws, for small and large quotas and sharp logits.

    Prints the relative error sum_a |pi(a) - pi of the draws| / K; writes inclusion.json.
    """

    draws: Annotated[int, Field(ge=500)] = 20_000
    """Candidate sets per row, in whole chunks of 500."""
    items: PositiveInt = 1000
    """N."""
    out: Path = Path("offline_eval/results")
    """Directory of the result."""

    def run(self) -> Mapping[str, Any]:
        """Draw, print, write."""
        import json

        from rich.console import Console
        from rich.progress import track

        from offline_eval.inclusion_error import EXPERTS, NAMES, QUOTAS, TEMPERATURES, inclusion_errors
        from offline_eval.provenance import provenance

        count = len(TEMPERATURES) * len(EXPERTS) * len(QUOTAS)
        rows = list(track(inclusion_errors(self.items, self.draws), "drawing", count, console=Console(stderr=True)))
        table = Table("temperature", "M", "K_m", *NAMES, title="error of inclusion probabilities, % of K")
        for row in rows:
            errors = [f"{100 * row.errors[name]:.2f}" for name in NAMES]
            table.add_row(f"{row.temperature:g}", str(row.num_experts), str(row.quota), *errors)
        show(table)
        command = f"python -m offline_eval inclusion --draws {self.draws} --items {self.items}"
        result = {**provenance(command), "rows": [row._asdict() for row in rows]}
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "inclusion.json").write_text(json.dumps(result, indent=1))
        print(f"written: {self.out / 'inclusion.json'}")
        return result


class OfflineEval(Options):
    """Judge checkpoints of esr_trainer before they go live."""

    compare: CliSubCommand[Compare]
    """Policy value, interval and paired difference of checkpoints, by replay."""

    reproduce: CliSubCommand[Reproduce]
    """Learning experiments over seeds: resumable, with paired differences and curves."""

    inclusion: CliSubCommand[Inclusion]
    """Error of the inclusion probabilities in closed form, against draws."""

    runtime: CliSubCommand[Runtime]
    """Milliseconds of a training step, as a multiple of its floor."""

    def cli_cmd(self) -> None:
        """Run the subcommand."""
        CliApp.run_subcommand(self)


if __name__ == "__main__":
    sys.exit(main(OfflineEval, "python -m offline_eval"))
