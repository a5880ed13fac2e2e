"""`python -m esr_trainer`: train an ESR online, from the settings to a checkpoint."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from esr_trainer.command_line import Command, UsageError, fail, main, note, show
from esr_trainer.config import Resume, TrainConfig


class Train(TrainConfig, Command):
    """Train an early-stage ranker online by policy gradient, against a late-stage ranker and simulated users.

    A configuration file is read first, the command line wins. Ctrl-C and SIGTERM save before they stop;
    the same command with --out RUN goes on from there. --resume RUN or CHECKPOINT goes on in a new run directory.
    """

    config: Path | None = None
    """YAML file of these options (names with underscores); the command line wins."""
    out: Path | None = None
    """Run directory; default a fresh runs/<n>. An existing run goes on when its options match."""
    resume: Resume = "auto"
    """`auto` goes on where --out holds a run, `never` refuses to. The path of a run or of a checkpoint starts a new run
    directory from its state, as if it had never stopped; the options are repeated, only --steps, --data,
    --evaluate-every, --checkpoint-every and --patience may be others."""

    def run(self) -> Mapping[str, Any]:
        """Train, and print the result for a newcomer."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Table

        from esr_trainer.interruption import stop_requested
        from esr_trainer.training import NonFiniteLossError, Trainer, prepare, train
        from esr_trainer.whole_directory import sole_writer

        config = TrainConfig.model_validate(self.model_dump(include=set(TrainConfig.model_fields)))
        trainer, run = prepare(config, self.out, self.resume)
        note(f"world: {trainer.world.description}")
        note(f"run: {run}" + (f", resumed at step {trainer.step}" if trainer.step else ""))
        if config.learning_rate_scale != "none":
            note(f"learning rate: {config.learning_rate:g} scaled to {trainer.optimizer.param_groups[0]['lr']:.4g}")
        first, began = trainer.step, time.perf_counter()

        def speed() -> float:
            return (trainer.step - first) / max(time.perf_counter() - began, 1e-9)

        columns = (
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps · {task.fields[speed]:.0f} step/s"),
            TextColumn("· policy value {task.fields[value]:.3f}"),
            TimeRemainingColumn(),
        )
        progress = Progress(*columns, console=Console(stderr=True))
        with sole_writer(run), stop_requested() as stop, progress:
            task = progress.add_task(
                "", total=config.steps, completed=first, speed=0.0, value=trainer.metrics["policy_value"]
            )

            def report(trainer: Trainer) -> None:
                progress.update(task, completed=trainer.step, speed=speed(), value=trainer.metrics["policy_value"])

            try:
                checkpoint = train(trainer, run, report, stop)
            except NonFiniteLossError as error:
                raise UsageError(str(error)) from error
            steps_per_second = speed()
        if trainer.step < config.steps:
            note(f"stopped at step {trainer.step}; go on with the same options and --out {run}")
        metrics = trainer.metrics
        table = Table("policy value", "reward per context", title=f"{config.estimator}, {trainer.step} steps")
        table.add_row("uniform: random candidates", f"{metrics['uniform_policy_value']:.3f}")
        table.add_row("popularity: one list for everybody", f"{metrics['popularity_policy_value']:.3f}")
        table.add_row("this ESR before training", f"{metrics['initial_policy_value']:.3f}")
        table.add_row("this ESR after training", f"{metrics['policy_value']:.3f}", style="bold")
        table.add_row("optimum: the best items for each context", f"{metrics['optimal_policy_value']:.3f}")
        show(table)
        print(f"checkpoint: {checkpoint}")
        print(f"next: python -m serving export {run} --out bundles")
        return {
            "checkpoint": str(checkpoint),
            "run": str(run),
            **metrics,
            "steps": trainer.step,
            "steps_per_second": steps_per_second,
        }


def read_settings(arguments: Sequence[str]) -> dict[str, Any]:
    """The content of the YAML file that `--config` names, or nothing.

    Raises:
        UsageError: the file cannot be read or is not a mapping.
    """
    import argparse

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path, nargs="?")  # without a value: the full parser says so
    path = parser.parse_known_args(arguments)[0].config
    if path is None:
        return {}
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"config ({path}) cannot be read: {error}") from error
    content = {} if content is None else content
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UsageError(f"config ({path}) is not a mapping of option names to values")
    return content


def command_line(arguments: Sequence[str]) -> int:
    """Run `python -m esr_trainer` with these arguments; give the exit code."""
    try:
        settings = read_settings(arguments)
    except UsageError as error:
        return fail(str(error))
    return main(Train, "python -m esr_trainer", arguments, settings)


if __name__ == "__main__":
    sys.exit(command_line(sys.argv[1:]))
