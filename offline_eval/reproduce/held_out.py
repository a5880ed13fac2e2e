"""Held out: what an ESR with feature towers is worth for contexts, or items, that it never met.

A row that was held out has no id of its own, as a new user has none when served: its bag of ids is empty, and its
embedding is what its features say. Axes: C contexts, N items.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from esr_trainer.command_line import UsageError
from esr_trainer.config import TrainConfig
from esr_trainer.features import ID, Features
from esr_trainer.policy_value import optimal_value, popular_candidates, popularity_value, replay_list, uniform_value
from esr_trainer.system import system_of
from esr_trainer.towers import EarlyStageRanker
from esr_trainer.training import Trainer, greedy_values, new_trainer, read_catalogue
from esr_trainer.world import World
from offline_eval.reproduce.curves import Curve, learn, world_of

SHARE = 0.2
"""Share of the rows that is held out."""


class Split(NamedTuple):
    """Rows that are learned from and rows that are not, each in the data's order."""

    learned: Tensor
    held_out: Tensor


def split(num_rows: int, seed: int) -> Split:
    """Hold out SHARE of the rows at random."""
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    count = round(SHARE * num_rows)
    return Split(order[count:].sort().values, order[:count].sort().values)


def rows_of(features: Features, rows: Tensor) -> Features:
    """Some rows of features, with the whole vocabulary."""
    return features._replace(bags={name: bags[rows.numpy()] for name, bags in features.bags.items()})


def without_ids(features: Features) -> Features:
    """The same rows, known by their features alone."""
    if list(features.bags) == [ID]:
        raise UsageError("held-out rows are known by their features alone: name context_features and item_features")
    return features._replace(bags={**features.bags, ID: features.bags[ID] * 0 - 1})


def with_ids(features: Features) -> Features:
    """The rows as they are."""
    return features


def valued_on(world: World, config: TrainConfig, contexts: Features, items: Features, trainer: Trainer) -> float:
    """What the trained tables are worth for other contexts and items of the same vocabularies."""
    policy = EarlyStageRanker(contexts, items, config.experts, config.embedding_dim, config.temperature)
    policy.load_state_dict(trainer.policy.state_dict())
    return float(greedy_values(world, system_of(config, world), policy).mean())


def held_out_contexts(known: Callable[[Features], Features], config: TrainConfig) -> Curve:
    """Learn from a share of the contexts; the curve is the value for the others.

    Args:
        known: what the context tower is given of the contexts that it learns from.
        config: the settings; an oracle LSR.
    """
    world = world_of(config)
    contexts, items = read_catalogue(config, world)
    learned, held_out = split(world.num_contexts, config.seed)
    everything = torch.arange(world.num_items)
    here, there = world.subset(learned, everything), world.subset(held_out, everything)
    met, unmet = known(rows_of(contexts, learned)), without_ids(rows_of(contexts, held_out))
    trainer = new_trainer(config, here, system_of(config, here), met, items)
    popular = popular_candidates(here, trainer.system)
    references = references_on(there, config) | {
        "popularity": float(replay_list(there, system_of(config, there), popular).mean())
    }
    return with_learned(trainer, references, lambda trainer: valued_on(there, config, unmet, items, trainer))


def held_out_items(known: Callable[[Features], Features], config: TrainConfig) -> Curve:
    """Learn from a share of the items; the curve is the value of candidates from the others alone.

    Popularity is the held-out items' own, which nobody has observed.

    Args:
        known: what the item tower is given of the items that it learns from.
        config: the settings; an oracle LSR.
    """
    world = world_of(config)
    contexts, items = read_catalogue(config, world)
    learned, held_out = split(world.num_items, config.seed)
    everybody = torch.arange(world.num_contexts)
    here, there = world.subset(everybody, learned), world.subset(everybody, held_out)
    met, unmet = known(rows_of(items, learned)), without_ids(rows_of(items, held_out))
    trainer = new_trainer(config, here, system_of(config, here), contexts, met)
    references = references_on(there, config) | {"popularity": popularity_value(there, system_of(config, there))}
    return with_learned(trainer, references, lambda trainer: valued_on(there, config, contexts, unmet, trainer))


def references_on(world: World, config: TrainConfig) -> dict[str, float]:
    """Uniform candidates and the optimum."""
    system = system_of(config, world)
    return {"uniform": uniform_value(world, system), "optimal": optimal_value(world, system)}


def with_learned(trainer: Trainer, references: dict[str, float], value: Callable[[Trainer], float]) -> Curve:
    """Learn; note the final value for the rows that were learned from, and their optimum, as references."""
    curve = learn(trainer, trainer.advance, references, value)
    values = greedy_values(trainer.world, trainer.system, trainer.policy)
    here = {"learned": float(values.mean()), "optimal of learned": optimal_value(trainer.world, trainer.system)}
    return curve._replace(references={**references, "initial": curve.policy_value[0], **here})


LEARNERS: Mapping[str, Callable[[TrainConfig], Curve]] = {
    "held-out contexts, learned by features": partial(held_out_contexts, without_ids),
    "held-out contexts, learned by ids and features": partial(held_out_contexts, with_ids),
    "held-out items, learned by features": partial(held_out_items, without_ids),
    "held-out items, learned by ids and features": partial(held_out_items, with_ids),
}
"""Name -> settings -> curve."""
