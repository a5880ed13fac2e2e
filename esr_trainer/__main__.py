"""`python -m esr_trainer`: train an ESR, from the settings to a checkpoint."""

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import PositiveInt
from pydantic_settings import CliToggleFlag

from esr_trainer.command_line import Command, UsageError, fail, main, note
from esr_trainer.config import Resume, ShardingName, TrainConfig
from esr_trainer.result import TrainingProgress, show_replicas, show_run

if TYPE_CHECKING:  # torch is not loaded for --help
    from esr_trainer.learner import Learner
    from esr_trainer.sharded_run import Sharing


class Train(TrainConfig, Command):
    """Train an early-stage ranker by policy gradient, against a late-stage ranker and simulated users, or from a log.

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

    seeds: PositiveInt = 1
    """Replicas from --seed on, trained side by side in one process; several live in RUN/seed-<seed>, each a run of its
    own."""
    sharding: ShardingName = "auto"
    """Where the tables' rows live under torchrun: in blocks of rows, a table with one process, all rows everywhere, or
    as torchrec's planner decides; a sampled catalogue lives in blocks, and other numbers of processes sample otherwise.
    Else the result is the same; a run may go on with another, and on more or fewer processes."""
    profile: CliToggleFlag[bool] = False
    """Profile ten steps after the first ten: a trace in the (first) run directory, the costliest operations on stderr;
    the result stays the same."""

    def run(self) -> Mapping[str, Any]:
        """Train, and print the result for a newcomer."""
        from esr_trainer.ranks import is_one_of_many

        config = TrainConfig.model_validate(self.model_dump(include=set(TrainConfig.model_fields)))
        if is_one_of_many():
            return self.share_out(config)
        from esr_trainer.replicas import prepare_replicas

        return self.train(config, *prepare_replicas(config, self.seeds, self.out, self.resume))

    def share_out(self, config: TrainConfig) -> Mapping[str, Any]:
        """Train as one of several processes; the first one prints."""
        from esr_trainer.sharded_run import Sharing, check_shardable, one_of_many, prepare_shared

        check_shardable(config, self.seeds, self.out, self.profile)
        with one_of_many(config.device) as ranks:
            trainer, run = prepare_shared(config, self.out, self.resume, self.sharding, ranks)
            return self.train(config, run, [trainer], [run], Sharing(ranks))

    def train(
        self,
        config: TrainConfig,
        out: Path,
        trainers: Sequence["Learner"],
        runs: Sequence[Path],
        sharing: "Sharing | None" = None,
    ) -> Mapping[str, Any]:
        """Train to the last step; with `sharing` as one of several processes."""
        from esr_trainer.interruption import stop_requested
        from esr_trainer.learner import NonFiniteLossError
        from esr_trainer.profiling import each_step, profiled
        from esr_trainer.run import Report, train_side_by_side
        from esr_trainer.whole_directory import sole_writer

        first = trainers[0]
        note(f"{'log' if config.from_log else 'world'}: {first.learned_from}")
        note(f"run: {out}" + (f", resumed at step {first.step}" if first.step else ""))
        if config.learning_rate_scale != "none":
            note(f"learning rate: {config.learning_rate:g} scaled to {first.optimizer.param_groups[0]['lr']:.4g}")
        with ExitStack() as stack:
            for run in runs:
                stack.enter_context(sharing.sole_writer(run) if sharing else sole_writer(run))
            stop = stack.enter_context(stop_requested())
            progress = stack.enter_context(TrainingProgress(trainers))
            report: Report = progress.report
            if self.profile:
                report = each_step(stack.enter_context(profiled(runs[0])), first, report)
            try:
                if sharing:
                    saved = train_side_by_side(trainers, runs, report, sharing.agreed(stop), sharing.journal)
                else:
                    saved = train_side_by_side(trainers, runs, report, stop)
            except NonFiniteLossError as error:
                raise UsageError(str(error)) from error
        if progress.stopped_early:
            note(f"stopped at step {first.step}; go on with the same options and --out {out}")
        speed = {"steps_per_second": progress.steps_per_second}
        results = [
            {"checkpoint": str(checkpoint), "run": str(run), **trainer.metrics, "steps": trainer.step}
            for checkpoint, run, trainer in zip(saved, runs, trainers, strict=True)
        ]
        if self.seeds == 1:
            show_run(results[0], config)
            return {**results[0], **speed}
        return {"run": str(out), **show_replicas(results, config, first.criterion), **speed}


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


SPINS = "10000"
"""How often a thread of libgomp looks before it sleeps, where the user has not said. On 2 cores beside two processes of
`while True: pass`, `--estimator top1 --steps 100` takes 10.8 steps a second with it (steps_per_second of metrics.jsonl)
and 4.7 with libgomp's own 300,000; on idle cores 36.6 and 38.3."""


if __name__ == "__main__":
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read once, when torch is loaded
    sys.exit(command_line(sys.argv[1:]))
