"""Halfway: a run that was killed goes on, bit for bit, from the last moment that it kept.

A folder holds the moment's checkpoint and, in curve.json, the policy values up to it or a little further.
"""

import os
from pathlib import Path

from esr_trainer.checkpoint import Grounds, checkpoints, open_branch
from esr_trainer.command_line import Options
from esr_trainer.config import TrainConfig
from esr_trainer.training import Trainer, resume
from esr_trainer.whole_directory import remove_unfinished
from offline_eval.reproduce.curves import Curve, first_value, go_on, new_run, references_of, value_of, world_of

KEPT_EVERY = 10
"""Evaluations between two moments that are kept: a tenth of a run."""

CURVE = "curve.json"


class Noted(Options):
    """The content of curve.json."""

    steps: list[int]
    policy_value: list[float]
    """As it was computed: not rounded, or the curve would differ from an uninterrupted run's."""
    references: dict[str, float]


def learn_resumably(config: TrainConfig, folder: Path) -> Curve:
    """Train as `python -m esr_trainer` does.

    Args:
        config: the settings; an LSR that is a file or a fitted model is not kept.
        folder: of this run alone; it need not exist, and may be removed when the run is over.

    Raises:
        UsageError: what the folder holds has other settings or another world, or is damaged.
    """
    trainer, curve = taken_up(config, folder) if checkpoints(folder) else begun(config)

    def keep(curve: Curve) -> None:
        if len(curve.steps) % KEPT_EVERY == 0:
            write(Noted(steps=curve.steps, policy_value=curve.policy_value, references=curve.references), folder)
            trainer.save(folder)

    return go_on(trainer, curve, trainer.advance, value_of, keep)


def begun(config: TrainConfig) -> tuple[Trainer, Curve]:
    """A run at its first step."""
    trainer = new_run(config)
    return trainer, first_value(trainer, references_of(trainer), value_of)


def taken_up(config: TrainConfig, folder: Path) -> tuple[Trainer, Curve]:
    """A run at the last moment that its folder holds."""
    remove_unfinished(folder / "checkpoints")
    world = world_of(config)
    trainer = resume(config, world, open_branch(folder, config, Grounds(world.fingerprint, None)))
    noted = Noted.model_validate_json((folder / CURVE).read_bytes())
    known = sum(step <= trainer.step for step in noted.steps)  # it is written before the checkpoint is
    return trainer, Curve(noted.steps[:known], noted.policy_value[:known], noted.references)


def write(noted: Noted, folder: Path) -> None:
    """Write curve.json, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{CURVE}.tmp"
    temporary.write_text(noted.model_dump_json())
    os.replace(temporary, folder / CURVE)
