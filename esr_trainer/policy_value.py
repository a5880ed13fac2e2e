"""Policy value: the mean over all contexts of the expected reward of greedy ESR then LSR, summed over weighted slots.

Beside it the values that it is read against: the optimum, the uniform policy, and one popular list for everybody.
Axes: C contexts, B batch, N items, K candidates, L slots.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from esr_trainer.late_stage_rankers import LateStageRanker
from esr_trainer.ranker_files import RankerFile, Scorer
from esr_trainer.world import World

CHUNK = 256
"""Contexts valued at a time, so that the logits of a large world are never held at once."""

UNIFORM_DRAWS = 8
"""Candidate sets per context over which the uniform policy's value is averaged."""


class System(NamedTuple):
    """Everything of a two-stage recommender but its ESR."""

    ranker: LateStageRanker
    """How scores become an order."""
    scores: Scorer
    """The world's own for an oracle, a model's otherwise."""
    num_candidates: int
    """K."""
    slot_weights: Tensor
    """(L,)."""
    ranker_file: RankerFile | None = None
    """Where `scores` come from, to be kept with a run; None for an oracle or a function of the caller's."""

    @property
    def num_slots(self) -> int:
        """L."""
        return len(self.slot_weights)


Choose = Callable[[Tensor], Tensor]
"""A policy: contexts (B,) -> candidates (B, K)."""


def replay(world: World, system: System, choose: Choose) -> Tensor:
    """The expected weighted reward of every context, (C,); the mean is the policy value.

    Orders of a random LSR come from a fixed seed per chunk, so two policies are compared on common random numbers.

    Args:
        world: C contexts and N items.
        system: LSR, K and slot weights.
        choose: the policy.
    """
    values = []
    for start in range(0, world.num_contexts, CHUNK):
        contexts = torch.arange(start, min(start + CHUNK, world.num_contexts), device=world.device)
        candidates = choose(contexts)
        rewards = system.ranker.expected_rewards(
            system.scores(contexts, candidates),
            world.expected_rewards(contexts, candidates),
            system.num_slots,
            torch.Generator(world.device).manual_seed(start),
        )
        values.append(rewards @ system.slot_weights)
    return torch.cat(values)


def optimal_value(world: World, system: System) -> float:
    """The best L of all N items in every context, the best in the slot that weighs most."""
    best = world.best_rewards(system.num_slots)
    return float((best @ system.slot_weights.sort(descending=True).values).mean())


def popularity_value(world: World, system: System) -> float:
    """One list for everybody, then the same LSR."""
    return float(replay_list(world, system, popular_candidates(world, system)).mean())


def replay_list(world: World, system: System, items: Tensor) -> Tensor:
    """`replay` of one list, (K,), for everybody."""
    return replay(world, system, lambda contexts: items.expand(len(contexts), -1))


def popular_candidates(world: World, system: System) -> Tensor:
    """The K items of the highest mean expected reward, (K,)."""
    return world.mean_rewards().topk(system.num_candidates).indices


def uniform_candidates(world: World, system: System, num_contexts: int, generator: torch.Generator) -> Tensor:
    """K random items for each of some contexts, (B, K)."""
    return world.random_items(num_contexts, system.num_candidates, generator)


def uniform_value(world: World, system: System) -> float:
    """K random items, then the same LSR; the mean of UNIFORM_DRAWS candidate sets per context."""
    generator = torch.Generator(world.device).manual_seed(0)

    def choose(contexts: Tensor) -> Tensor:
        return uniform_candidates(world, system, len(contexts), generator)

    return float(torch.stack([replay(world, system, choose).mean() for _ in range(UNIFORM_DRAWS)]).mean())
