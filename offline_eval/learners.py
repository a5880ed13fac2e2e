"""LEARNERS: what a cell of an experiment trains, and the curve of policy values that comes out."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

from esr_trainer.config import TrainConfig
from esr_trainer.environments import open_world
from esr_trainer.system import ranker_of, system_of
from esr_trainer.training import NonFiniteLossError, Trainer, start

REFERENCES = ("uniform", "popularity", "initial", "optimal")
"""What a policy value is read against; see `esr_trainer.policy_value`."""


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


Learner = Callable[[TrainConfig], Curve]


open_once = lru_cache(maxsize=2)(open_world)
"""The last worlds, for the next cell of this process."""


def new_run(config: TrainConfig) -> Trainer:
    """A run of these settings at its first step."""
    world = open_once(config.environment, config.data, config.world_seed, config.contexts, config.items)
    return start(config, world, system_of(config, world, ranker_of(config, world)))


def policy_gradient(config: TrainConfig) -> Curve:
    """Train as `python -m esr_trainer` does, valued every `evaluate_every` steps; nothing is written."""
    trainer = new_run(config)
    curve = Curve([0], [trainer.metrics["policy_value"]], {n: trainer.metrics[f"{n}_policy_value"] for n in REFERENCES})
    while trainer.step < config.steps:
        try:
            trainer.advance()
        except NonFiniteLossError as error:
            return curve._replace(failure=str(error))
        if trainer.evaluation_is_due:
            trainer.evaluate()
            curve.steps.append(trainer.step)
            curve.policy_value.append(trainer.metrics["policy_value"])
    return curve


LEARNERS: Mapping[str, Learner] = {
    "policy-gradient": policy_gradient,
}
"""Name -> settings -> curve."""
