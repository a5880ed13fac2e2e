"""Judge one policy by replay: its value beside the baseline's, what its lists are like, and a candidate's verdict.

Axes: C contexts, B batch, K candidates, L slots.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from esr_trainer.policy import greedy_candidates
from esr_trainer.policy_value import CHUNK, System, popular_candidates, replay
from esr_trainer.towers import EarlyStageRanker
from esr_trainer.world import World
from offline_eval.intervals import Estimate, bootstrap
from offline_eval.replay.comparison import Judged
from offline_eval.replay.list_measures import Best, Lists, best_of_ranker, best_of_world, measure
from offline_eval.replay.replay_gates import Bars, replay_gates
from offline_eval.replay.segments import Segment, value_segments
from offline_eval.replay.served import served_candidates, serving_skew
from offline_eval.verdict import corrected_confidence, judge
from serving.retriever import Retriever


class Replayed(NamedTuple):
    """A policy's lists and what they are worth."""

    name: str
    candidates: Tensor
    """(C, K)."""
    values: np.ndarray
    """Expected weighted reward of every context, (C,)."""


class Arena(NamedTuple):
    """What all policies are judged on."""

    world: World
    system: System
    baseline: Replayed
    segments: list[Segment]
    by_ranker: Best | None
    by_world: Best
    num_judged: int
    """Candidates, of which the best will be chosen."""

    @property
    def confidence(self) -> float:
        """Of a difference's interval: corrected for the number of candidates."""
        return corrected_confidence(self.num_judged)

    @property
    def segment_confidence(self) -> float:
        """Of a segment's intervals: corrected for looking at every segment of every candidate."""
        return corrected_confidence(self.num_judged * max(1, len(self.segments)))


def arena_of(world: World, system: System, baseline: Replayed, segments: list[Segment], num_judged: int) -> Arena:
    """An arena, with the best lists of LSR and world."""
    best = best_of_ranker(world, system), best_of_world(world, system)
    return Arena(world, system, baseline, segments, *best, num_judged)


def replay_lists(world: World, system: System, candidates: Tensor) -> np.ndarray:
    """`replay` of lists that are there already: (C, K) -> (C,)."""
    values: np.ndarray = replay(world, system, lambda contexts: candidates[contexts]).numpy()
    return values


def popular(world: World, system: System, name: str) -> Replayed:
    """One popular list for everybody."""
    candidates = popular_candidates(world, system).expand(world.num_contexts, -1)
    return Replayed(name, candidates, replay_lists(world, system, candidates))


@torch.no_grad()
def trained(world: World, system: System, name: str, policy: EarlyStageRanker) -> Replayed:
    """The greedy candidates of a trained ESR."""
    contexts = torch.arange(world.num_contexts)
    candidates = torch.cat(
        [greedy_candidates(policy(rows), system.num_candidates) for rows in torch.split(contexts, CHUNK)]
    )
    return Replayed(name, candidates, replay_lists(world, system, candidates))


def served(world: World, system: System, name: str, retriever: Retriever) -> Replayed:
    """What a bundle answers."""
    candidates = served_candidates(retriever, world, system.num_candidates)
    return Replayed(name, candidates, replay_lists(world, system, candidates))


def minus_baseline(arena: Arena, live: np.ndarray) -> Estimate:
    """Paired difference to the baseline of values, (C,)."""
    return bootstrap(live - arena.baseline.values, confidence=arena.confidence)


def judge_popularity(arena: Arena, policy: Replayed) -> Judged:
    """One list for everybody: nothing of it can be permuted."""
    return judge_reference(arena, policy)._replace(permuted=None, lost_when_permuted=None)


def judge_reference(arena: Arena, policy: Replayed) -> Judged:
    """A policy that gets no verdict."""
    difference = None if policy is arena.baseline else minus_baseline(arena, policy.values)
    return judge_policy(arena, policy, policy.values, difference)


def judge_candidate(arena: Arena, bars: Bars, name: str, policy: EarlyStageRanker, retriever: Retriever) -> Judged:
    """A candidate's numbers and its verdict, which is on what its bundle serves.

    Args:
        arena: what it is judged on.
        bars: how high the gates are.
        name: its run.
        policy: the trained ESR.
        retriever: its bundle.

    Raises:
        UsageError: the bundle is of another world.
    """
    at_training = trained(arena.world, arena.system, name, policy)
    at_serving = served(arena.world, arena.system, name, retriever)
    difference = minus_baseline(arena, at_serving.values)
    judged = judge_policy(arena, at_training, at_serving.values, difference)
    lists = at_training.candidates, at_serving.candidates
    skew = serving_skew(retriever, policy, lists, (at_training.values, at_serving.values))
    gates = replay_gates(judged._replace(served=skew), arena.world.num_contexts, bars)
    return judged._replace(served=skew, verdict=judge(difference, gates, bars.margin))


def judge_policy(arena: Arena, policy: Replayed, live: np.ndarray, difference: Estimate | None) -> Judged:
    """One policy's numbers.

    Args:
        arena: what it is judged on.
        policy: as it was trained.
        live: what goes live of it is worth in every context, (C,); its own values where that was not looked at.
        difference: to the baseline; None for the baseline itself.
    """
    another = torch.randperm(arena.world.num_contexts, generator=torch.Generator().manual_seed(0))
    permuted = replay_lists(arena.world, arena.system, policy.candidates[another])
    lists = Lists(
        candidates=policy.candidates,
        baseline=arena.baseline.candidates,
        by_ranker=arena.by_ranker,
        by_world=arena.by_world,
        num_items=arena.world.num_items,
    )
    differences = None if difference is None else live - arena.baseline.values
    return Judged(
        name=policy.name,
        policy_value=bootstrap(policy.values),
        difference=difference,
        permuted=bootstrap(permuted),
        lost_when_permuted=bootstrap(policy.values - permuted),
        measures=measure(lists),
        segments=value_segments(arena.segments, live, differences, arena.segment_confidence),
        served=None,
        verdict=None,
    )
