"""From settings to a run: the settings checked against the data, then a run begun or taken up again."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from esr_trainer.checkpoint import Checkpoint, Grounds, checkpoints, enter_run, holds_run, make_run, open_branch
from esr_trainer.command_line import UsageError
from esr_trainer.config import Resume, TrainConfig, misuse_of_sample
from esr_trainer.environments import open_world
from esr_trainer.fused_training import FusedTrainer
from esr_trainer.learner import Learner
from esr_trainer.log_training import Ground, resume_from_log, stand_on, start_from_log
from esr_trainer.logged_batches import Log, Parts, hold_out, open_log, positives_of
from esr_trainer.pairs import Descriptions, describe
from esr_trainer.pg_ret import (
    AdaptingGround,
    by_context,
    check_same_ids,
    fingerprint_of,
    inherited,
    resume_adapting,
    start_adapting,
    top_of,
)
from esr_trainer.pg_ret_rewards import open_reward
from esr_trainer.ranker_files import RankerFile
from esr_trainer.relevance_oracles import open_oracle
from esr_trainer.sampled_training import SampledTrainer
from esr_trainer.system import ranker_of, read_ranker, system_of
from esr_trainer.training import Trainer, resume, start
from esr_trainer.world import World


@dataclass(frozen=True)
class Settled(ABC):
    """Settings that fit what they are about, which is read."""

    config: TrainConfig
    given: RankerFile | None
    """The LSR's own file, if the settings name one or it was fitted already."""

    @property
    @abstractmethod
    def grounds(self) -> Grounds:
        """What decides the run, beside its settings."""

    @abstractmethod
    def begin(self) -> Learner:
        """A new run, valued."""

    @abstractmethod
    def go_on(self, checkpoint: Checkpoint) -> Learner:
        """A run that goes on from a checkpoint, bit for bit as if it had never stopped."""


@dataclass(frozen=True)
class InWorld(Settled):
    """A run that interacts with a world."""

    world: World

    @property
    def grounds(self) -> Grounds:
        """The world and the LSR."""
        return Grounds(self.world.fingerprint, self.given)

    def begin(self) -> Learner:
        """With the LSR's own file, or with the one that the settings ask for."""
        ranker = self.given or ranker_of(self.config, self.world)
        return start(self.config, self.world, system_of(self.config, self.world, ranker), self.kind)

    def go_on(self, checkpoint: Checkpoint) -> Learner:
        """With the LSR that it had."""
        return resume(self.config, self.world, checkpoint, self.kind)

    @property
    def kind(self) -> type[Trainer]:
        """Whether its steps go through the whole catalogue, and store its logits."""
        if self.config.samples(self.world.num_items):
            return SampledTrainer
        return FusedTrainer if self.config.fuses(self.world.num_items) else Trainer


@dataclass(frozen=True)
class FromLog(Settled):
    """A run that learns from a log."""

    log: Log
    parts: Parts
    world: World | None

    @property
    def grounds(self) -> Grounds:
        """The log, the LSR, and the world if there is one."""
        fingerprint = self.log.fingerprint
        return Grounds(self.world.fingerprint if self.world else fingerprint, self.given, fingerprint)

    def begin(self) -> Learner:
        """With the LSR's own file, or with the one that the settings ask for."""
        return start_from_log(self.config, self.ground(self.given))

    def go_on(self, checkpoint: Checkpoint) -> Learner:
        """With the LSR that it had."""
        return resume_from_log(self.config, self.ground(checkpoint.ranker()), checkpoint)

    def ground(self, ranker: RankerFile | None) -> Ground:
        """What the run stands on."""
        return stand_on(self.config, self.log, self.parts, self.world, ranker)


@dataclass(frozen=True)
class Adapting(Settled):
    """A run that adapts another."""

    world: World
    init: Checkpoint
    production: Checkpoint
    log: Log | None

    @property
    def grounds(self) -> Grounds:
        """The world, the LSR, the feedback and the runs that it begins with."""
        log = self.log.fingerprint if self.log else None
        return Grounds(self.world.fingerprint, self.given, log, fingerprint_of(self.init, self.production))

    def begin(self) -> Learner:
        """With the LSR's own file, or with the one that the settings ask for."""
        return start_adapting(self.config, self.ground(self.given or ranker_of(self.config, self.world)), self.init)

    def go_on(self, checkpoint: Checkpoint) -> Learner:
        """With the LSR that it had."""
        return resume_adapting(self.config, self.ground(checkpoint.ranker()), checkpoint)

    def ground(self, ranker: RankerFile | None) -> AdaptingGround:
        """What the run stands on."""
        config, world = self.config, self.world
        init = check_same_ids("init", self.init, world)
        production = check_same_ids("production", self.production, world)
        told = [
            describe(ids, path)
            for ids, path in ((world.context_ids, config.context_features), (world.item_ids, config.item_features))
        ]
        return AdaptingGround(
            world=world,
            system=system_of(config, world, ranker),
            oracle=open_oracle(config.relevance, world, Descriptions(*told)),
            reward=open_reward(config.reward),
            explored=top_of(init, world, config.candidates) if config.explorer == "init" else None,
            produced=top_of(production, world, config.reward_top),
            feedback=by_context(self.log) if self.log else None,
            fingerprint=self.grounds.init_fingerprint or "",
            log_fingerprint=self.grounds.log_fingerprint,
        )


def prepare(config: TrainConfig, out: Path | None, resume_from: Resume = "auto") -> tuple[Learner, Path]:
    """Check the settings against the data, then start a run or take one up again.

    Args:
        config: the settings.
        out: the run directory; None for a fresh one.
        resume_from: `auto` goes on where `out` holds a run, `never` refuses that, and a path names the run or the
            checkpoint from whose state a new run goes on.

    Returns:
        The run and its directory.

    Raises:
        UsageError: the settings, the data or the directory cannot be used; nothing was written.
    """
    return take_up(settle(config), out, resume_from)


def settle(config: TrainConfig) -> Settled:
    """Read what the settings are about, and give them with their world's name and with whole paths.

    Raises:
        UsageError: the settings do not fit it, or a file cannot be read.
    """
    check_device_and_files(config)
    given = read_ranker(config.lsr) if isinstance(config.lsr, Path) else None
    if config.estimator == "pg-ret":
        return settle_adapting(config, Path(str(config.init)), given)
    if config.from_log is None:
        config, world = in_world(config)
        config = with_whole_paths(config)
        if config.estimator == "infonce":
            return settle_positives(config, world, given)
        if wrong := misuse_of_sample(config, world.num_items):
            raise UsageError(wrong)
        return InWorld(config, given, world.to(config.device))
    return settle_log(config, config.from_log, given)


def settle_log(config: TrainConfig, source: str, given: RankerFile | None) -> FromLog:
    """Read the log, and the world if there is one."""
    config, world = in_world(config) if config.values_in_a_world else (config, None)
    log = open_log(source, world)
    check_candidates(config, len(log.item_ids))
    config = with_whole_paths(config).model_copy(update={"from_log": log.place})
    return FromLog(config, given, log, hold_out(log, config.world_seed), world)


def with_whole_paths(config: TrainConfig) -> TrainConfig:
    """The settings, readable from any folder."""
    paths = {
        name: path.resolve()
        for name in ("data", "context_features", "item_features", "lsr", "init", "production")
        if isinstance(path := getattr(config, name), Path)
    }
    return config.model_copy(update=paths)


def settle_positives(config: TrainConfig, world: World, given: RankerFile | None) -> FromLog:
    """Take what is relevant in the world as the log.

    Raises:
        UsageError: nothing is, or only a judge could tell.
    """
    oracle = config.relevance.oracle
    if oracle != "labels":
        raise UsageError(f"relevance.oracle ({oracle}): infonce without --from-log learns from the world's labels")
    log = positives_of(world, config.relevance.relevant_above)
    return FromLog(config, given, log, hold_out(log, config.world_seed), world)


def settle_adapting(config: TrainConfig, place: Path, given: RankerFile | None) -> Adapting:
    """Read the run that is adapted, the world, and the feedback if there is any."""
    init = Checkpoint(place)
    config, world = in_world(inherited(config, init))
    if config.reward_top > world.num_items:
        raise UsageError(f"reward_top ({config.reward_top}) exceeds the data's {world.num_items} items")
    log = open_log(config.from_log, world) if config.from_log else None
    config = with_whole_paths(config).model_copy(update={"from_log": log.place if log else None})
    return Adapting(config, given, world, init, Checkpoint(config.production) if config.production else init, log)


def in_world(config: TrainConfig) -> tuple[TrainConfig, World]:
    """Open the world; give the settings with its name."""
    world = open_world(config.environment, config.data, config.world_seed, config.contexts, config.items)
    check_candidates(config, world.num_items)
    return config.model_copy(update={"environment": world.environment}), world


def check_candidates(config: TrainConfig, num_items: int) -> None:
    """Check that there are K items.

    Raises:
        UsageError: there are fewer.
    """
    if config.candidates > num_items:
        raise UsageError(f"candidates ({config.candidates}) exceeds the data's {num_items} items")


def check_device_and_files(config: TrainConfig) -> None:
    """Check what can be told before anything is read.

    Raises:
        UsageError: the device is not there or cannot do what is asked, or a features file is missing.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device (cuda): this machine, or this build of torch, has none")
    for path in (config.context_features, config.item_features):
        if path is not None and not path.is_file():
            raise UsageError(f"features ({path}) is not a file")
        if path is not None and config.device != "cpu":
            raise UsageError(f"features ({path}) are looked up on the cpu alone: leave --device {config.device} out")
    if config.device != "cpu" and (config.lsr == "learned" or isinstance(config.lsr, Path)):
        raise UsageError(f"lsr ({config.lsr}) ranks on the cpu alone: leave --device {config.device} out")


MakeRun = Callable[[Path | None, TrainConfig, Grounds], Path]


def take_up(settled: Settled, out: Path | None, resume_from: Resume, make: MakeRun = make_run) -> tuple[Learner, Path]:
    """Start a run or take one up again; `out` and `resume_from` as for `prepare`, `make` writes a new directory."""
    config, grounds = settled.config, settled.grounds
    if resume_from == "auto" and out is not None and holds_run(out):
        enter_run(out, config, grounds)
        return go_on(settled, Checkpoint(out)) if checkpoints(out) else settled.begin(), out
    if isinstance(resume_from, Path):
        learner = go_on(settled, open_branch(resume_from, config, grounds))
    else:
        learner = settled.begin()
    return learner, make(out, config, grounds)


def go_on(settled: Settled, checkpoint: Checkpoint) -> Learner:
    """Go on from a checkpoint.

    Raises:
        UsageError: it is beyond the last step.
    """
    done, steps = checkpoint.description.step, settled.config.steps
    if done > steps:
        raise UsageError(f"steps ({steps}): the run has already done {done}")
    return settled.go_on(checkpoint)


def with_seed(settled: Settled, seed: int, ranker: RankerFile | None) -> Settled:
    """The same settings under another seed, with an LSR that was fitted already."""
    config = TrainConfig.model_validate({**settled.config.model_dump(), "seed": seed})
    return replace(settled, config=config, given=settled.given or ranker)
