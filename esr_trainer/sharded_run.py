"""A run under torchrun: what it may be, how it begins, and who writes and prints.

Every process does the same; the first one writes the run directory and speaks for all.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from esr_trainer.checkpoint import Checkpoint, checkpoints, make_run
from esr_trainer.command_line import UsageError
from esr_trainer.config import ONLINE, Resume, TrainConfig
from esr_trainer.learner import Learner
from esr_trainer.metrics import MetricsLog
from esr_trainer.preparation import InWorld, settle, take_up
from esr_trainer.ranks import Ranks, joined, num_processes, times_restarted
from esr_trainer.run import Journal
from esr_trainer.sampled_sharded_training import SampledShardedTrainer
from esr_trainer.sharded_checkpoint import ShardedCheckpoint
from esr_trainer.sharded_training import ShardedTrainer, new_sharded_trainer
from esr_trainer.system import ranker_of, system_of
from esr_trainer.training import resume, valued
from esr_trainer.whole_directory import remove_unfinished, sole_writer


def check_shardable(config: TrainConfig, num_seeds: int, out: Path | None, is_profiled: bool) -> None:
    """Refuse what has no sharded form; every process finds the same, without asking the others.

    Raises:
        UsageError: names the setting and the rule.
    """
    rules = (
        (
            config.estimator in ONLINE,
            f"estimator ({config.estimator}) runs in one process: torchrun takes {', '.join(ONLINE)}",
        ),
        (config.from_log is None, f"from_log ({config.from_log}) is learned from in one process"),
        (not is_profiled, "profile (True) watches one process: leave it out under torchrun"),
        (num_seeds == 1, f"seeds ({num_seeds}) train side by side in one process: torchrun takes one"),
        *(
            (path is None, f"{name} ({path}) are looked up in one process: torchrun takes ids alone")
            for name in ("context_features", "item_features")
            for path in [getattr(config, name)]
        ),
        (out is not None or not times_restarted(), "out must be named: a restarted run goes on where --out names it"),
    )
    for is_kept, rule in rules:
        if not is_kept:
            raise UsageError(rule)


def check_items(num_items: int) -> None:
    """Refuse more processes than have items of their own.

    Raises:
        UsageError: names both.
    """
    count = num_processes()
    if num_items <= (count - 1) * -(-num_items // count):
        raise UsageError(f"torchrun's {count} processes are too many for {num_items} items: each needs one")


def sharding_of(sharding: str, is_sampled: bool) -> str:
    """Where the rows live: those of a sampled catalogue where they are sought, in blocks.

    Raises:
        UsageError: they are to live elsewhere.
    """
    if is_sampled and sharding not in ("auto", "row-wise"):
        raise UsageError(f"sharding ({sharding}): a sampled catalogue is shared out row-wise, or name --catalogue full")
    return "row-wise" if is_sampled else sharding


@contextmanager
def one_of_many(device: str) -> Iterator[Ranks]:
    """Within the block this process is one of a run's, and all but the first are silent."""
    with joined(device) as ranks, contextlib.ExitStack() as stack:
        if not ranks.is_first:
            nothing = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
            stack.enter_context(contextlib.redirect_stderr(nothing))
            sys.stdout = nothing  # for good: results are printed behind this block
        yield ranks


@dataclass(frozen=True)
class SharedInWorld(InWorld):
    """A run that interacts with a world, shared out."""

    sharding: str
    ranks: Ranks

    def begin(self) -> Learner:
        """With the LSR's own file, or with the one that the first process makes."""
        ranker = self.given or self.ranks.told(lambda: ranker_of(self.config, self.world))
        system = system_of(self.config, self.world, ranker)
        return valued(new_sharded_trainer(self.config, self.world, system, self.sharding, self.ranks, self.kind))

    def go_on(self, checkpoint: Checkpoint) -> Learner:
        """With the LSR that it had, on as many processes as there are now."""
        sharded = ShardedCheckpoint(checkpoint.directory, self.sharding, self.ranks)
        return resume(self.config, self.world, sharded, self.kind)

    @property
    def kind(self) -> type[ShardedTrainer]:
        """Whether its steps go through the whole catalogue."""
        return SampledShardedTrainer if self.config.samples(self.world.num_items) else ShardedTrainer


def prepare_shared(
    config: TrainConfig, out: Path | None, resume_from: Resume, sharding: str, ranks: Ranks
) -> tuple[Learner, Path]:
    """Start a run or take one up again, as `esr_trainer.preparation.prepare` does in one process.

    Raises:
        UsageError: the settings, the data or the directory cannot be used; nothing was written.
    """
    settled = settle(config)
    assert isinstance(settled, InWorld)
    num_items = settled.world.num_items
    check_items(num_items)
    sharding = sharding_of(sharding, settled.config.samples(num_items))
    shared = SharedInWorld(settled.config, settled.given, settled.world, sharding, ranks)
    return take_up(shared, out, resume_from, lambda *run: ranks.told(lambda: make_run(*run)))


class SharedJournal(Journal):
    """What the processes of a run write of it: each its rows, the first all else."""

    def __init__(self, trainer: Learner, run: Path) -> None:
        assert isinstance(trainer, ShardedTrainer)
        self.trainer, self.run = trainer, run
        ranks = trainer.policy.ranks
        ranks.told(lambda: remove_unfinished(run / "checkpoints"))
        if trainer.step and ranks.told(lambda: not checkpoints(run)):
            trainer.save(run)
        self.metrics = MetricsLog(run, trainer.step) if ranks.is_first else Unwritten()


class Unwritten:
    """The metrics of a process that does not write."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Sharing:
    """What the processes of a run do together, where one alone would do it by itself."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.journal = SharedJournal

    @contextmanager
    def sole_writer(self, run: Path) -> Iterator[None]:
        """Hold a run directory for these processes.

        Raises:
            UsageError: others hold it.
        """
        with contextlib.ExitStack() as stack:
            self.ranks.told(lambda: stack.enter_context(sole_writer(run)))
            yield

    def agreed(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """Whether any of the processes was asked to stop."""
        return lambda: self.ranks.any(stop())
