"""Checkpoints: everything a run needs to go on bit for bit, and everything an export needs, in one directory.

A run directory holds `config.json` and `checkpoints/<step>/`. A checkpoint is written whole or not at all, its
`checkpoint.json` names the SHA-256 of every other file, and nothing in it is a pickle.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from esr_trainer.command_line import Options, UsageError
from esr_trainer.config import TrainConfig
from esr_trainer.features import Features, load_features, save_features
from esr_trainer.ranker_files import RANKER_FILES, RankerFile
from esr_trainer.table_pieces import read_into, tensors_in
from esr_trainer.towers import EarlyStageRanker
from esr_trainer.whole_directory import numbered, remove_whole, sha256, written_whole

SCHEMA_VERSION = 1
DESCRIPTION = "checkpoint.json"

PACE = ("evaluate_every", "checkpoint_every", "patience")
"""Settings that decide when a run is valued, saved and ended, and nothing of what it learns."""


class CheckpointDescription(Options):
    """The content of checkpoint.json."""

    schema_version: int
    """Layout of the directory."""
    step: int
    """Gradient steps done."""
    config: TrainConfig
    """The run's resolved settings."""
    world: str
    """What the world is, in one line."""
    world_fingerprint: str
    """SHA-256 of the world: checkpoints of one world can be compared."""
    log_fingerprint: str | None = None
    """SHA-256 of the log it learned from, if it learned from one."""
    init_fingerprint: str | None = None
    """SHA-256 of the runs it began with, if it adapts one."""
    metrics: dict[str, float]
    """Policy value at this step, and the values it is read against."""
    files: dict[str, str]
    """SHA-256 of every other file."""


class Grounds(NamedTuple):
    """What decides a run, beside its settings."""

    world_fingerprint: str
    """SHA-256 of the world that it is valued in; of the log where there is none."""
    ranker: RankerFile | None
    """The LSR's own file, if there is one."""
    log_fingerprint: str | None = None
    """SHA-256 of the log that it learns from; None if it interacts with the world."""
    init_fingerprint: str | None = None
    """SHA-256 of the runs that it begins with; None if it begins anew."""


class Checkpoint:
    """A verified checkpoint directory."""

    def __init__(self, directory: Path, is_checked: bool = True) -> None:
        """Open a checkpoint directory, or the last checkpoint of a run directory, and check every file.

        Args:
            directory: of either.
            is_checked: not so where another process of this run reads every file and checks it.

        Raises:
            UsageError: there is no checkpoint, or a file is missing or changed.
        """
        self.directory = last_checkpoint(directory)
        try:
            self.description = CheckpointDescription.model_validate_json((self.directory / DESCRIPTION).read_bytes())
        except (OSError, ValidationError) as error:
            raise UsageError(f"checkpoint ({self.directory}): {DESCRIPTION} cannot be read") from error
        found = self.description.schema_version
        if found != SCHEMA_VERSION:
            raise UsageError(f"checkpoint ({self.directory}) has schema version {found}, not {SCHEMA_VERSION}")
        for name, digest in self.description.files.items():
            if not (self.directory / name).is_file():
                raise UsageError(f"checkpoint ({self.directory}): {name} is missing")
            if is_checked and sha256(self.directory / name) != digest:
                raise UsageError(f"checkpoint ({self.directory}): {name} was changed, its SHA-256 differs")

    @property
    def config(self) -> TrainConfig:
        """The run's resolved settings."""
        return self.description.config

    def policy(self) -> EarlyStageRanker:
        """The ESR with its trained weights."""
        policy = build_policy(
            self.config, load_features(self.directory, "context"), load_features(self.directory, "item")
        )
        if self.is_in_pieces:
            read_into(self.directory, {name: table.detach() for name, table in policy.named_parameters()})
        else:
            policy.load_state_dict(load_file(self.directory / "policy.safetensors"))
        return policy

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimizer's tensors, by `<parameter>.<name>`."""
        if not self.is_in_pieces:
            return load_file(self.directory / "optimizer.safetensors")
        there = tensors_in(self.directory)
        state = {name: torch.empty_like(one, device="cpu") for name, one in there.items() if is_moment(name)}
        read_into(self.directory, state)
        return state

    @property
    def is_in_pieces(self) -> bool:
        """Whether several processes wrote its tables, each its rows (`esr_trainer.sharded_checkpoint`)."""
        return "policy.safetensors" not in self.description.files

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its tables; in hexadecimal. Where several processes wrote them, of all its files."""
        files = self.description.files
        if not self.is_in_pieces:
            return files["policy.safetensors"]
        return hashlib.sha256(" ".join(sorted(files.values())).encode()).hexdigest()

    def state(self) -> dict[str, Tensor]:
        """What else the run goes on from: its generator's state and its baseline."""
        return load_file(self.directory / "state.safetensors")

    @property
    def grounds(self) -> Grounds:
        """What decided the run, beside its settings."""
        description = self.description
        return Grounds(
            description.world_fingerprint, self.ranker(), description.log_fingerprint, description.init_fingerprint
        )

    def ranker(self) -> RankerFile | None:
        """The LSR that it was trained with; None for an oracle."""
        names = [name for name in RANKER_FILES if name in self.description.files]
        return RankerFile(names[0], (self.directory / names[0]).read_bytes()) if names else None


def build_policy(config: TrainConfig, contexts: Features, items: Features) -> EarlyStageRanker:
    """The ESR that the settings describe, its tables not yet drawn."""
    return EarlyStageRanker(contexts, items, config.experts, config.embedding_dim, config.temperature)


def save_checkpoint(
    run: Path,
    description: Mapping[str, Any],
    policy: EarlyStageRanker,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Tensor],
    ranker: RankerFile | None,
) -> Path:
    """Write `checkpoints/<step>` of a run.

    Args:
        run: the run directory.
        description: the fields of CheckpointDescription, but schema_version and files.
        policy: the ESR.
        optimizer: its state is stored by parameter name.
        state: what else the run needs to go on.
        ranker: the LSR's own file, if it has one.

    Returns:
        The checkpoint's directory.

    Raises:
        UsageError: the disk is full or may not be written; nothing is left half-written.
    """
    target = run / "checkpoints" / f"{description['step']:08d}"
    if target.exists():  # the run stopped right after a regular checkpoint
        return target
    try:
        with written_whole(target) as directory:
            save_tensors(directory / "policy.safetensors", policy.state_dict())
            save_tensors(directory / "optimizer.safetensors", moments_of(policy, optimizer))
            write_rest(directory, description, policy, state, ranker)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"checkpoint ({target}) cannot be written: {error}") from error
    return target


def moments_of(policy: EarlyStageRanker, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors, by `<parameter>.<name>`."""
    names = list(policy.learned())
    return {
        f"{names[index]}.{key}": value
        for index, values in optimizer.state_dict()["state"].items()
        for key, value in values.items()
    }


def is_moment(name: str) -> bool:
    """Whether a tensor's name is `<parameter>.<name>`, an optimizer's."""
    return ".weight." in name


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors from wherever they are."""
    save_file({key: tensor.cpu() for key, tensor in tensors.items()}, path)


def write_rest(
    directory: Path,
    description: Mapping[str, Any],
    policy: EarlyStageRanker,
    state: Mapping[str, Tensor],
    ranker: RankerFile | None,
) -> None:
    """Write all but the tables and their optimizer's state, which are there; arguments as for `save_checkpoint`."""
    save_tensors(directory / "state.safetensors", state)
    if ranker:
        (directory / ranker.name).write_bytes(ranker.content)
    save_features(policy.context_tower.features, directory, "context")
    save_features(policy.item_tower.features, directory, "item")
    files = {path.name: sha256(path) for path in sorted(directory.iterdir())}
    content = CheckpointDescription(schema_version=SCHEMA_VERSION, files=files, **description)
    (directory / DESCRIPTION).write_text(content.model_dump_json(indent=2))


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, policy: EarlyStageRanker, state: Mapping[str, Tensor]
) -> None:
    """Give an optimizer the tensors that `save_checkpoint` stored."""
    by_parameter: dict[int, dict[str, Tensor]] = {}
    for index, name in enumerate(policy.learned()):
        by_parameter[index] = {
            key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")
        }
    optimizer.load_state_dict({"state": by_parameter, "param_groups": optimizer.state_dict()["param_groups"]})


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run directory, oldest first."""
    found = [path for path in (run / "checkpoints").glob("*") if re.fullmatch(r"\d{8,}", path.name, re.ASCII)]
    return sorted(found, key=lambda path: int(path.name))


def last_checkpoint(directory: Path) -> Path:
    """The directory itself if it is a checkpoint, else the last checkpoint of the run."""
    if (directory / DESCRIPTION).is_file():
        return directory
    found = checkpoints(directory)
    if not found:
        raise UsageError(f"run ({directory}) holds no checkpoint")
    return found[-1]


def keep_last_and_best(run: Path, criterion: str = "policy_value") -> None:
    """Remove every checkpoint but the last and the one with the highest of a metric."""
    *earlier, last = checkpoints(run)
    value = {path: json.loads((path / DESCRIPTION).read_text())["metrics"][criterion] for path in (*earlier, last)}
    best = max((last, *reversed(earlier)), key=value.__getitem__)
    for path in earlier:
        if path != best:
            remove_whole(path)


def holds_run(directory: Path) -> bool:
    """Whether a directory is a run's."""
    return (directory / "config.json").is_file()


def settings_of(config: TrainConfig, grounds: Grounds) -> dict[str, Any]:
    """What must be the same where a run goes on: all but the number of steps and where the data is.

    Args:
        config: the settings.
        grounds: what it is about; an LSR's own file that is named by its path goes by its content.
    """
    settings = config.model_dump(mode="json", exclude={"steps", "data", "from_log"})
    if grounds.ranker and isinstance(config.lsr, Path):
        settings["lsr"] = f"of SHA-256 {grounds.ranker.sha256}"
    return {
        **settings,
        "world_fingerprint": grounds.world_fingerprint,
        "log_fingerprint": grounds.log_fingerprint,
        "init_fingerprint": grounds.init_fingerprint,
    }


def check_same_settings(what: str, found: Mapping[str, Any], wanted: Mapping[str, Any], rule: str) -> None:
    """Raise a UsageError that quotes the first of the wanted settings that is not the one found."""
    for name, value in wanted.items():
        if found.get(name) != value:
            raise UsageError(f"{what} {name} {found.get(name)}, not {value}; {rule}")


def open_branch(directory: Path, config: TrainConfig, grounds: Grounds) -> Checkpoint:
    """The checkpoint from which another run may go on: what the two learn by must be the same.

    Args:
        directory: a run directory, for its last checkpoint, or a checkpoint.
        config: the settings of the run that goes on; PACE may differ, as may the steps and where the data is.
        grounds: what it is about.

    Raises:
        UsageError: there is no whole checkpoint, or it has other settings.
    """
    checkpoint = Checkpoint(directory)
    found, wanted = (
        {name: value for name, value in settings_of(*run).items() if name not in PACE}
        for run in ((checkpoint.config, checkpoint.grounds), (config, grounds))
    )
    rule = f"only steps, data, {', '.join(PACE)} may differ"
    check_same_settings(f"resume ({directory}) has", found, wanted, rule)
    return checkpoint


def enter_run(directory: Path, config: TrainConfig, grounds: Grounds) -> None:
    """Check that a run directory's configuration matches.

    Args:
        directory: it holds a run.
        config: the settings; a run that is entered again may ask for more steps, or find its data elsewhere.
        grounds: what the run is about, which must match too.

    Raises:
        UsageError: its settings are others.
    """
    try:
        written = json.loads((directory / "config.json").read_text())
    except json.JSONDecodeError as error:
        raise UsageError(f"out ({directory}): its config.json cannot be read") from error
    found = {
        **settings_of(TrainConfig(), Grounds("", None)),
        **written,
    }  # an option that is newer than the run was at its default
    rule = "name another directory, or repeat that run's options to go on with it"
    check_same_settings(f"out ({directory}) holds a run with", found, settings_of(config, grounds), rule)


def make_run(directory: Path | None, config: TrainConfig, grounds: Grounds) -> Path:
    """Make a run directory, None for the next free `runs/<n>`; it holds `config.json`; arguments as of `enter_run`.

    Raises:
        UsageError: the directory holds something already.
    """
    if directory is None:
        directory = fresh_run(Path("runs"))
    elif holds_run(directory):
        raise UsageError(f"out ({directory}) holds a run: only --resume auto goes on there; name another directory")
    elif directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"out ({directory}) is not empty and holds no run")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / "config.json.tmp"
        temporary.write_text(json.dumps(settings_of(config, grounds), indent=2))
        os.replace(temporary, directory / "config.json")
    except OSError as error:
        raise UsageError(f"out ({directory}) cannot be written: {error.strerror}") from error
    return directory


def fresh_run(root: Path) -> Path:
    """Make the directory with the next free number; of two processes at the same moment one is refused."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        number = 1 + max(numbered(root), default=0)
        while (root / str(number)).exists():
            number += 1
        (root / str(number)).mkdir()
    except OSError as error:
        raise UsageError(f"out ({root}) cannot be written: {error.strerror}") from error
    return root / str(number)
