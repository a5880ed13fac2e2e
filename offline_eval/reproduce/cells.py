"""Cells: the runs that an experiment is made of, each in a process of its own kind, stored as soon as it ends.

A finished cell is never computed again, whichever experiment asks for it, and a long one goes on where it was.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError, field_serializer

from esr_trainer.command_line import Options, UsageError
from esr_trainer.config import TrainConfig
from offline_eval.provenance import commit, machine

FILES = ("data", "context_features", "item_features")
"""Settings that are paths."""

DIGITS = 5
"""Decimals of a stored policy value."""


class Cell(Options):
    """One run: what learns, and the settings that decide it."""

    learner: str
    """A name in LEARNERS."""
    config: TrainConfig

    @field_serializer("config")
    def _without_folders(self, config: TrainConfig) -> dict[str, Any]:
        """A file goes by its name, wherever it lies."""
        return {
            name: Path(value).name if name in FILES and value else value
            for name, value in config.model_dump(mode="json").items()
        }

    @property
    def key(self) -> str:
        """What tells this cell from every other."""
        return self.model_dump_json()


class CellResult(Options):
    """What a cell reached."""

    cell: Cell
    steps: list[int]
    """Gradient steps at which the greedy policy was valued."""
    policy_value: list[float]
    """Its value at each of them."""
    references: dict[str, float]
    """Uniform, popularity, initial and optimal policy value."""
    failure: str | None
    """Why the run ended early (a loss or gradient that is not finite), or None."""
    seconds: float
    """Wall time, evaluations included, since it was last taken up."""
    commit: str
    """The code that ran it."""


class Results(Options):
    """The content of a result file."""

    command: str
    machine: str
    torch: str
    results: list[CellResult]


def run_cell(cell: Cell, unfinished: Path) -> CellResult:
    """Run one cell, here and now, or what is left of it.

    Args:
        cell: what to run.
        unfinished: the folder where cells keep how far they have come.
    """
    from offline_eval.reproduce.learners import LEARNERS

    began = time.perf_counter()
    curve = LEARNERS[cell.learner](cell.config, folder_of(cell, unfinished))
    return CellResult(
        cell=cell,
        steps=curve.steps,
        policy_value=[round(value, DIGITS) for value in curve.policy_value],
        references={name: round(value, DIGITS) for name, value in curve.references.items()},
        failure=curve.failure,
        seconds=round(time.perf_counter() - began, 1),
        commit=commit(),
    )


def folder_of(cell: Cell, unfinished: Path) -> Path:
    """Where a cell keeps how far it has come: other code begins it anew."""
    return unfinished / hashlib.sha256(f"{cell.key} {commit()}".encode()).hexdigest()[:16]


def forget(cell: Cell, unfinished: Path) -> None:
    """Remove what a cell kept on its way; its result is stored."""
    shutil.rmtree(folder_of(cell, unfinished), ignore_errors=True)


def known_results(folder: Path) -> dict[str, CellResult]:
    """Every finished cell of a folder's result files, by its key: experiments share what they have in common.

    Raises:
        UsageError: a file is named as an experiment's and is none.
    """
    from offline_eval.reproduce.experiments import EXPERIMENTS

    files = [folder / f"{name}.json" for name in EXPERIMENTS]
    return {result.cell.key: result for path in files for result in read_results(path)}


def read_results(path: Path) -> list[CellResult]:
    """The finished cells of a result file; none where there is no file.

    Raises:
        UsageError: the file is not one.
    """
    if not path.exists():
        return []
    try:
        return Results.model_validate_json(path.read_bytes()).results
    except (OSError, ValidationError) as error:
        raise UsageError(f"results ({path}) cannot be read; move the file away to begin anew") from error


def write_results(path: Path, command: str, results: Sequence[CellResult]) -> None:
    """Write a result file, whole or not at all; a line per cell."""
    import torch

    head = Results(command=command, machine=machine(), torch=torch.__version__, results=[]).model_dump_json()
    lines = ",\n".join(result.model_dump_json() for result in results)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(f"{head.removesuffix(']}')}\n{lines}\n]}}\n")
    os.replace(temporary, path)
