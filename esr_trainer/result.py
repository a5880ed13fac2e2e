"""What people see of a training: its progress on stderr, its result on stdout."""

import statistics
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from esr_trainer.command_line import show
from esr_trainer.config import TrainConfig

if TYPE_CHECKING:  # torch is not loaded for --help
    from esr_trainer.learner import Learner


class TrainingProgress:
    """A bar over the steps of all runs."""

    def __init__(self, trainers: Sequence["Learner"]) -> None:
        self.trainers = trainers
        self.first, self.began = self.steps, time.perf_counter()
        self.steps_per_second = 0.0
        columns = (
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps · {task.fields[speed]:.0f} step/s"),
            TextColumn(f"· {spoken(trainers[0].criterion)} {{task.fields[value]:.3f}}"),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=Console(stderr=True))
        self.total = sum(trainer.config.steps for trainer in trainers)
        self.task = self.progress.add_task("", total=self.total, completed=self.first, speed=0.0, value=self.value)

    @property
    def steps(self) -> int:
        """Steps of all runs so far."""
        return sum(trainer.step for trainer in self.trainers)

    @property
    def value(self) -> float:
        """Mean of what the runs are valued by."""
        return statistics.fmean(trainer.metrics[trainer.criterion] for trainer in self.trainers)

    @property
    def stopped_early(self) -> bool:
        """Whether steps are left."""
        return self.steps < self.total

    def report(self, trainer: "Learner") -> None:
        """Move the bar, once for all runs that step together."""
        self.steps_per_second = (self.steps - self.first) / max(time.perf_counter() - self.began, 1e-9)
        if trainer is self.trainers[-1]:
            self.progress.update(self.task, completed=self.steps, speed=self.steps_per_second, value=self.value)

    def __enter__(self) -> "TrainingProgress":
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.progress.stop()


def spoken(metric: str) -> str:
    """A metric's name for people."""
    return metric.replace("_", " ")


def show_run(result: Mapping[str, Any], config: TrainConfig) -> None:
    """One run for a newcomer: what it is worth and what that is read against, and what to do next."""
    if "policy_value" in result:
        table = Table("policy value", "reward per context", title=f"{config.estimator}, {result['steps']} steps")
        table.add_row("uniform: random candidates", f"{result['uniform_policy_value']:.3f}")
        table.add_row("popularity: one list for everybody", f"{result['popularity_policy_value']:.3f}")
        table.add_row("this ESR before training", f"{result['initial_policy_value']:.3f}")
        table.add_row("this ESR after training", f"{result['policy_value']:.3f}", style="bold")
        table.add_row("optimum: the best items for each context", f"{result['optimal_policy_value']:.3f}")
        show(table)
    if "held_out_recall" in result:
        show_held_out(result, config)
    print(f"checkpoint: {result['checkpoint']}")
    print(f"next: python -m serving export {result['run']} --out bundles")


def show_held_out(result: Mapping[str, Any], config: TrainConfig) -> None:
    """What a run that learned from a log is worth on impressions that it did not learn from."""
    table = Table(
        "held-out impressions", f"recall@{config.candidates}", title=f"{config.estimator}, {result['steps']} steps"
    )
    table.add_row("popularity: one list for everybody", f"{result['popularity_held_out_recall']:.3f}")
    table.add_row("this ESR before training", f"{result['initial_held_out_recall']:.3f}")
    table.add_row("this ESR after training", f"{result['held_out_recall']:.3f}", style="bold")
    show(table)
    print(f"held-out log loss of an item that earned something: {result['held_out_log_loss']:.3f}")
    print(f"reward per impression, as logged: {result['logged_reward']:.4g}")
    if "ips_value" in result and result["ips_value_low"] == result["ips_value_high"]:
        print(
            "reward per impression of greedy ESR then LSR: unknown, no held-out reward is of an item that it would show"
        )
    elif "ips_value" in result:
        print(
            f"reward per impression of greedy ESR then LSR, by inverse propensities: {result['ips_value']:.4g} "
            f"(95 % interval {result['ips_value_low']:.4g} to {result['ips_value_high']:.4g})"
        )


def show_replicas(
    results: Sequence[Mapping[str, Any]], config: TrainConfig, criterion: str = "policy_value"
) -> Mapping[str, Any]:
    """Several seeds: what each is valued by, its mean and its standard error; what `--json` prints of them."""
    from esr_trainer.replicas import mean_over_seeds

    seeds = range(config.seed, config.seed + len(results))
    table = Table("seed", "steps", spoken(criterion), "run", title=f"{config.estimator}, {len(results)} seeds")
    for seed, result in zip(seeds, results, strict=True):
        table.add_row(str(seed), str(result["steps"]), f"{result[criterion]:.4f}", result["run"])
    mean, error = mean_over_seeds([result[criterion] for result in results])
    table.add_row("mean", "", f"{mean:.4f} (standard error {error:.4f})", style="bold")
    if "optimal_policy_value" in results[0]:
        table.add_row("optimum", "", f"{results[0]['optimal_policy_value']:.4f}")
    show(table)
    if config.values_in_a_world:
        print(f"next: python -m offline_eval compare {' '.join(result['run'] for result in results)}")
    return {
        criterion: mean,
        f"{criterion}_standard_error": error,
        "seeds": [{"seed": seed, **result} for seed, result in zip(seeds, results, strict=True)],
    }
