"""Replicas: the same run under consecutive seeds, trained side by side in one process."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from esr_trainer.checkpoint import fresh_run, holds_run
from esr_trainer.command_line import UsageError
from esr_trainer.config import Resume, TrainConfig
from esr_trainer.learner import Learner
from esr_trainer.preparation import settle, take_up, with_seed


class Mean(NamedTuple):
    """A mean over seeds."""

    mean: float
    standard_error: float
    """Sample standard deviation over the square root of the number of seeds; needs two."""


def mean_over_seeds(values: Sequence[float]) -> Mean:
    """The mean of at least two values and its standard error."""
    return Mean(statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)))


def prepare_replicas(
    config: TrainConfig, num_seeds: int, out: Path | None, resume_from: Resume
) -> tuple[Path, list[Learner], list[Path]]:
    """Start or take up the runs of seeds seed..seed + num_seeds - 1 in one world.

    Args:
        config: the settings of the first.
        num_seeds: one run lives in `out` itself, several in `out/seed-<seed>`.
        out: a directory; None for a fresh one.
        resume_from: as for `prepare`; a path holds as many runs in the same way.

    Returns:
        The directory, the runs, and each one's run directory.

    Raises:
        UsageError: the settings, the data or a directory cannot be used.
    """
    settled = settle(config)
    if num_seeds == 1:
        trainer, run = take_up(settled, out, resume_from)
        return run, [trainer], [run]
    if out is not None and holds_run(out):
        raise UsageError(f"out ({out}) holds the run of one seed: --seeds ({num_seeds}) needs a directory of its own")
    strangers = [path.name for path in out.glob("*") if not path.name.startswith("seed-")] if out is not None else []
    if strangers:
        raise UsageError(f"out ({out}) holds {strangers[0]}: --seeds ({num_seeds}) needs a directory of its own")
    root = fresh_run(Path("runs")) if out is None else out
    taken: list[tuple[Learner, Path]] = []
    for seed in range(config.seed, config.seed + num_seeds):
        fitted = taken[0][0].grounds.ranker if taken else None  # once, by the first
        source = resume_from / f"seed-{seed}" if isinstance(resume_from, Path) else resume_from
        taken.append(take_up(with_seed(settled, seed, fitted), root / f"seed-{seed}", source))
    return root, [trainer for trainer, _ in taken], [run for _, run in taken]
