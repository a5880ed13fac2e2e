"""Curves: the policy values of a run as it learns, without anything written."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from esr_trainer.config import TrainConfig
from esr_trainer.environments import open_world
from esr_trainer.learner import NonFiniteLossError
from esr_trainer.system import ranker_of, system_of
from esr_trainer.training import Trainer, start
from esr_trainer.world import World

REFERENCES = ("uniform", "popularity", "initial", "optimal")
"""What a policy value is read against; see `esr_trainer.policy_value`."""

open_once = lru_cache(maxsize=2)(open_world)
"""The last worlds, for the next run of this process."""


class Curve(NamedTuple):
    """The policy values of a run."""

    steps: list[int]
    """Gradient steps at which the greedy policy was valued."""
    policy_value: list[float]
    """Its value at each of them."""
    references: dict[str, float]
    """REFERENCES."""
    failure: str | None = None
    """Why the run ended early (a loss or gradient that is not finite), or None."""


def world_of(config: TrainConfig) -> World:
    """The settings' world, on their device."""
    world = open_once(config.environment, config.data, config.world_seed, config.contexts, config.items)
    return world.to(config.device)


def new_run(config: TrainConfig) -> Trainer:
    """A run of these settings at its first step, valued."""
    world = world_of(config)
    return start(config, world, system_of(config, world, ranker_of(config, world)))


def references_of(trainer: Trainer) -> dict[str, float]:
    """What the run's policy value is read against."""
    return {name: trainer.metrics[f"{name}_policy_value"] for name in REFERENCES}


def value_of(trainer: Trainer) -> float:
    """The greedy policy's value on the run's own world."""
    trainer.evaluate()
    return trainer.metrics["policy_value"]


def learn(
    trainer: Trainer,
    advance: Callable[[], None],
    references: dict[str, float],
    value: Callable[[Trainer], float] = value_of,
) -> Curve:
    """Advance from the first step to the last, valuing the policy every `evaluate_every` steps.

    Args:
        trainer: at its first step.
        advance: takes the trainer a step further.
        references: what the values are read against.
        value: what the policy is worth.
    """
    return go_on(trainer, first_value(trainer, references, value), advance, value, lambda curve: None)


def first_value(trainer: Trainer, references: dict[str, float], value: Callable[[Trainer], float]) -> Curve:
    """The curve of a run at its first step."""
    return Curve([0], [value(trainer)], references)


def go_on(
    trainer: Trainer,
    curve: Curve,
    advance: Callable[[], None],
    value: Callable[[Trainer], float],
    keep: Callable[[Curve], None],
) -> Curve:
    """Advance to the last step; arguments as for `learn`.

    Args:
        trainer: at the curve's last step.
        curve: what is known so far; it is prolonged in place.
        advance: takes the trainer a step further.
        value: what the policy is worth.
        keep: called with the curve after each evaluation.
    """
    while trainer.step < trainer.config.steps:
        try:
            advance()
        except NonFiniteLossError as error:
            return curve._replace(failure=str(error))
        if trainer.evaluation_is_due:
            curve.steps.append(trainer.step)
            curve.policy_value.append(value(trainer))
            keep(curve)
    return curve
