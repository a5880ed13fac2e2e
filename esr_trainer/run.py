"""The life of a run from its first step to its last, alone or side by side with others that differ by their seed."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from esr_trainer.checkpoint import checkpoints
from esr_trainer.learner import Learner, NonFiniteLossError, take_step
from esr_trainer.metrics import Metrics, MetricsLog
from esr_trainer.whole_directory import remove_unfinished

Report = Callable[[Learner], None]
"""Called after every step and evaluation of a run."""


class Journal:
    """What a run writes of itself while it trains: metrics at each evaluation, checkpoints, the last one at its end."""

    def __init__(self, trainer: Learner, run: Path) -> None:
        remove_unfinished(run / "checkpoints")
        self.trainer = trainer
        self.run = run
        if trainer.step and not checkpoints(run):  # from another run's state: this one can go on from here by itself
            trainer.save(run)
        self.metrics: Metrics = MetricsLog(run, trainer.step)

    @property
    def is_over(self) -> bool:
        """Whether the last step is done, or patience has run out."""
        config = self.trainer.config
        ran_out = config.patience and self.trainer.metrics["evaluations_since_best"] >= config.patience
        return bool(ran_out) or self.trainer.step >= config.steps

    def after_step(self, report: Report) -> None:
        """Evaluate and save where it is due; end after the last step, or where patience does."""
        trainer = self.trainer
        if trainer.evaluation_is_due:
            trainer.evaluate()
            self.metrics.write(trainer.step, trainer.metrics)
        report(trainer)
        if self.is_over:
            self.close()
        elif trainer.saving_is_due:
            trainer.save(self.run)

    def close(self) -> Path:
        """Value and save the moment; give the checkpoint's directory. A second time it only gives it."""
        self.metrics.close()
        self.trainer.evaluate()
        return self.trainer.save(self.run)


def joint_optimizer(trainers: Sequence[Learner]) -> torch.optim.Optimizer:
    """One optimizer of the tables of all runs, on each one's own state: a run is saved as if it were alone."""
    first, *others = trainers
    if not others:
        return first.optimizer
    tables = [table for trainer in trainers for table in trainer.policy.learned().values()]
    joint = first.optimizers[first.config.optimizer](tables, lr=first.optimizer.param_groups[0]["lr"])
    for trainer in trainers:
        for table in trainer.policy.learned().values():
            joint.state[table] = trainer.optimizer.state[table]  # an empty one is filled in place by the first step
    return joint


def train(trainer: Learner, run: Path, report: Report, stop: Callable[[], bool]) -> Path:
    """Advance to the last step, evaluating and saving on the way; arguments as for `train_side_by_side`.

    Returns:
        The last checkpoint's directory.
    """
    return train_side_by_side([trainer], [run], report, stop)[0]


def train_side_by_side(
    trainers: Sequence[Learner],
    runs: Sequence[Path],
    report: Report,
    stop: Callable[[], bool],
    journal_of: Callable[[Learner, Path], Journal] = Journal,
) -> list[Path]:
    """Advance runs that differ by their seed alone to their last step, evaluating and saving on the way.

    Those that are the furthest behind step together, so runs that were killed between two checkpoints catch up first.

    Args:
        trainers: from `prepare`.
        runs: their run directories; nobody else may write there.
        report: called after every step and evaluation.
        stop: asked after every step; True saves and ends the runs early.
        journal_of: who writes of a run.

    Returns:
        The directory of each one's last checkpoint.

    Raises:
        NonFiniteLossError: names the step, the estimator and the last good checkpoint.
    """
    journals = [journal_of(trainer, run) for trainer, run in zip(trainers, runs, strict=True)]
    group: list[Journal] = []
    while (going := [journal for journal in journals if not journal.is_over]) and not stop():
        behind = min(journal.trainer.step for journal in going)
        together = [journal for journal in going if journal.trainer.step == behind]
        if together != group:
            group, optimizer = together, joint_optimizer([journal.trainer for journal in together])
        try:
            take_step([journal.trainer for journal in group], optimizer)
        except NonFiniteLossError as error:
            for journal in journals:
                journal.metrics.close()
            (last,) = [checkpoints(journal.run) for journal in group if journal.trainer.config.seed == error.seed]
            message = f"{error}; last good checkpoint: {last[-1] if last else 'none'}"
            raise NonFiniteLossError(message, error.seed) from None
        for journal in group:
            journal.after_step(report)
    return [journal.close() for journal in journals]
