"""Compare checkpoints by replay: the same contexts through each, judged by policy value and paired difference.

Axes: C contexts, B batch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from esr_trainer.checkpoint import Checkpoint
from esr_trainer.command_line import UsageError
from esr_trainer.config import TrainConfig
from esr_trainer.environments import open_world
from esr_trainer.policy import greedy_candidates
from esr_trainer.policy_value import System, optimal_value, popular_candidates, replay, replay_list, uniform_value
from esr_trainer.system import ranker_of, system_of
from esr_trainer.towers import EarlyStageRanker
from esr_trainer.world import World
from offline_eval.intervals import Estimate, bootstrap

SYSTEM_SETTINGS = ("lsr", "slot_weights", "candidates", "slate")
"""What must be the same for two checkpoints' policy values to be comparable."""

POPULARITY = "popularity"


class Judged(NamedTuple):
    """One policy's result."""

    name: str
    """Its run or checkpoint directory, or `popularity`."""
    policy_value: Estimate
    difference: Estimate | None
    """Paired difference to the baseline; None for the baseline itself."""
    permuted: Estimate | None
    """Policy value when every context is answered as if it were another: what is lost is what the ESR knows of its
    context. None for popularity, which knows nothing."""


class Comparison(NamedTuple):
    """What `compare` found."""

    world: str
    num_contexts: int
    system: Mapping[str, str | int]
    baseline: str
    judged: list[Judged]
    uniform_policy_value: float
    optimal_policy_value: float


def compare(
    candidates: list[Path],
    baseline: Path | None,
    data: Path | None = None,
    overrides: Mapping[str, str | int] | None = None,
) -> Comparison:
    """Replay every context of the runs' world through each checkpoint.

    Args:
        candidates: run or checkpoint directories.
        baseline: the same, or None for one popular list for everybody.
        data: where the world's file is now, if it was moved.
        overrides: LSR, slot weights, K or L to judge by, instead of the ones trained with.

    Raises:
        UsageError: a checkpoint cannot be read, or they were not made for the same world and system.
    """
    paths = [*([baseline] if baseline else []), *candidates]
    checkpoints = [Checkpoint(path) for path in paths]
    first = checkpoints[0]
    overrides = overrides or {}
    settings = {name: overrides.get(name, setting(first, name)) for name in SYSTEM_SETTINGS}
    for path, checkpoint in zip(paths, checkpoints, strict=True):
        if checkpoint.description.world_fingerprint != first.description.world_fingerprint:
            raise UsageError(f"{path} was trained in another world than {paths[0]}: {checkpoint.description.world}")
        for name in settings.keys() - overrides.keys():
            if (found := setting(checkpoint, name)) != settings[name]:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{path} has {name} {found}, {paths[0]} {settings[name]}; choose one with {option}")
    config = TrainConfig.model_validate({**first.config.model_dump(), **overrides, "device": "cpu"})
    world = open_world(config.environment, data or config.data, config.world_seed, config.contexts, config.items)
    if world.fingerprint != first.description.world_fingerprint:
        raise UsageError(f"data ({data or config.data}) is not what {paths[0]} was trained on; name it with --data")
    if config.candidates > world.num_items:
        raise UsageError(f"candidates ({config.candidates}) exceeds the data's {world.num_items} items")
    system = system_of(config, world, ranker_of(config, world) if "lsr" in overrides else first.ranker())
    return judge(world, system, settings, paths, [checkpoint.policy() for checkpoint in checkpoints], baseline)


def setting(checkpoint: Checkpoint, name: str) -> str | int:
    """A setting of the system that a checkpoint was trained with; of an LSR's own file, the content."""
    ranker = checkpoint.ranker() if name == "lsr" else None
    found: str | int = getattr(checkpoint.config, name)
    return f"of SHA-256 {ranker.sha256}" if ranker else found


def judge(
    world: World,
    system: System,
    settings: Mapping[str, str | int],
    paths: list[Path],
    policies: list[EarlyStageRanker],
    baseline: Path | None,
) -> Comparison:
    """Value each policy on the world; the first is the baseline when one was named, else popularity is."""
    popular = popular_candidates(world, system)
    popularity = replay_list(world, system, popular).numpy()
    values = [replay_greedy(world, system, policy, torch.arange(world.num_contexts)) for policy in policies]
    reference = values[0] if baseline else popularity
    shuffled = torch.randperm(world.num_contexts, generator=torch.Generator().manual_seed(0))
    judged = [Judged(POPULARITY, bootstrap(popularity), bootstrap(popularity - reference) if baseline else None, None)]
    for position, (path, policy, value) in enumerate(zip(paths, policies, values, strict=True)):
        is_baseline = baseline is not None and position == 0
        judged.append(
            Judged(
                name=str(path),
                policy_value=bootstrap(value),
                difference=None if is_baseline else bootstrap(value - reference),
                permuted=bootstrap(replay_greedy(world, system, policy, shuffled)),
            )
        )
    return Comparison(
        world=world.description,
        num_contexts=world.num_contexts,
        system=settings,
        baseline=str(baseline or POPULARITY),
        judged=judged,
        uniform_policy_value=uniform_value(world, system),
        optimal_policy_value=optimal_value(world, system),
    )


def replay_greedy(world: World, system: System, policy: EarlyStageRanker, answered_as: Tensor) -> np.ndarray:
    """The expected weighted reward of every context, (C,), when context c is answered as `answered_as[c]`."""

    def choose(contexts: Tensor) -> Tensor:
        return greedy_candidates(policy(answered_as[contexts]), system.num_candidates)

    with torch.no_grad():
        return replay(world, system, choose).numpy()
