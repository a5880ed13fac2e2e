"""How many steps learning takes as the catalogue grows: REINFORCE, PG-Ret, TOP1-PG and ca-poisson.

PG-Ret's authors claim that a binary policy on pairs needs a number of samples that grows with N, where a policy over
the catalogue needs one that grows with N^2. Here: steps until the best of the greedy ten is worth 90 % of the optimum,
on the synthetic world with few contexts. The others begin with random tables. PG-Ret, which adapts what is there, has
items that are embedded as well as can be, by the right singular vectors of the world's scores, and contexts that know
nothing; what is relevant to a context are its ten best items.

Axes: C contexts, N items.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch

from esr_trainer.config import TrainConfig
from esr_trainer.features import ID, id_features
from esr_trainer.late_stage_rankers import LATE_STAGE_RANKERS
from esr_trainer.learner import Learner
from esr_trainer.pg_ret import AdaptingGround, top_of, with_policy
from esr_trainer.pg_ret_rewards import REWARDS
from esr_trainer.policy_value import System, optimal_value
from esr_trainer.relevance_oracles import LabelOracle
from esr_trainer.synthetic import synthetic_world
from esr_trainer.training import greedy_values, new_trainer
from esr_trainer.world import World
from offline_eval.grids import Grid

CONTEXTS, CANDIDATES, BATCH = 16, 10, 16
SHARE = 0.9
"""Of the optimum; ten random items are worth about 60 % of it."""
EVERY = 10
"""Steps between two looks."""
SIZES = (100, 300, 1000, 3000, 10_000)
"""N."""
RATES, RATE_ITEMS, RATE_SEED = (0.01, 0.003, 0.03, 0.001), 300, 1000
"""Learning rates that each learner chooses from, where, and on which seed."""
NEVER = -1
"""Steps of a run that was not there at its last step."""


class Convergence(NamedTuple):
    """One run."""

    learner: str
    num_items: int
    seed: int
    steps: int
    """Gradient steps to SHARE of the optimum, or NEVER."""
    most: int
    """After how many steps it was given up."""
    learning_rate: float
    """The learner's best of RATES at RATE_ITEMS items, on a seed that is not counted."""


def settings(estimator: str, seed: int, **own: object) -> TrainConfig:
    """What all learners have in common: Adam, one expert, no bonus."""
    given: dict[str, object] = {
        "experts": 1,
        "candidates": CANDIDATES,
        "batch": BATCH,
        "entropy": 0.0,
        "embedding_dim": 32,
    }
    given |= {"init_std": 0.3, "estimator": estimator, "seed": seed, "steps": 10**6}
    return TrainConfig.model_validate(given | own)


def system_for(world: World, num_candidates: int) -> System:
    """The optimal LSR, one slot."""
    return System(LATE_STAGE_RANKERS["optimal"], world.scores, num_candidates, torch.ones(1))


def over_the_catalogue(estimator: str, num_candidates: int, world: World, seed: int, rate: float) -> Learner:
    """A policy over the catalogue that plays rounds with its own K."""
    config = settings(estimator, seed, candidates=num_candidates, learning_rate=rate)
    ids = id_features(world.context_ids), id_features(world.item_ids)
    return new_trainer(config, world, system_for(world, num_candidates), *ids)


def over_pairs(world: World, seed: int, rate: float) -> Learner:
    """PG-Ret on as many pairs per step as the others have candidates, all drawn from the whole catalogue.

    Pairs of the current top, nearly all of them irrelevant at first, drown the few relevant ones that are found: with
    one pair in ten from there it stands at 4.67 after 1,000 steps on 1,000 items, of an optimum of 8.42.
    """
    shares = {"share_current": 0.0, "share_explored": 1.0, "explorer": "uniform"}
    of_pairs = {"init": "none", "pairs": CANDIDATES, "reward_top": CANDIDATES, "learning_rate": rate}
    config = settings("pg-ret", seed, **of_pairs, **shares)
    policy = over_the_catalogue("top1", CANDIDATES, world, seed, rate).policy
    _, _, right = torch.linalg.svd(world.score, full_matrices=False)  # (C, N)
    policy.item_tower.weights()[ID].detach().zero_()[:, :CONTEXTS] = (
        config.init_std * math.sqrt(world.num_items) * right.T
    )
    best = world.expected_reward.topk(CANDIDATES, dim=1).indices
    ground = AdaptingGround(
        world=world,
        system=system_for(world, CANDIDATES),
        oracle=LabelOracle(torch.zeros_like(world.expected_reward).scatter_(1, best, 1.0)),
        reward=REWARDS["recall"],
        explored=None,
        produced=top_of(policy, world, CANDIDATES),
        feedback=None,
        fingerprint="",
        log_fingerprint=None,
    )
    return with_policy(config, ground, policy)


LEARNERS: Mapping[str, Callable[[World, int, float], Learner]] = {
    "REINFORCE (v, K = 1)": partial(over_the_catalogue, "v", 1),
    "pg-ret": over_pairs,
    "top1": partial(over_the_catalogue, "top1", CANDIDATES),
    "ca-poisson": partial(over_the_catalogue, "ca-poisson", CANDIDATES),
}
"""Name -> a run at its first step in a world, by seed and learning rate."""


def steps_to_share(learner: Learner, world: World, most: int) -> int:
    """Steps until the greedy ten are worth SHARE of the optimum, or NEVER within `most`."""
    system = system_for(world, CANDIDATES)
    goal = SHARE * optimal_value(world, system)
    while float(greedy_values(world, system, learner.policy).mean()) < goal:
        if learner.step >= most:
            return NEVER
        for _ in range(EVERY):
            learner.advance()
    return learner.step


def best_rate(begin: Callable[[World, int, float], Learner], num_items: int, most: int) -> float:
    """The rate of RATES that gets there first; the first of them where none does."""
    world = synthetic_world(CONTEXTS, num_items, RATE_SEED)
    best = RATES[0]
    for rate in RATES:
        steps = steps_to_share(begin(world, RATE_SEED, rate), world, most)
        if steps != NEVER:
            best, most = rate, steps - 1  # another has to be sooner
    return best


def convergences(sizes: Sequence[int], seeds: int, most: int) -> Iterator[Convergence]:
    """Every learner on every catalogue, at its best rate."""
    rates = {name: best_rate(begin, min(RATE_ITEMS, max(sizes)), most) for name, begin in LEARNERS.items()}
    for num_items in sizes:
        for seed in range(seeds):
            world = synthetic_world(CONTEXTS, num_items, seed)
            for name, begin in LEARNERS.items():
                steps = steps_to_share(begin(world, seed, rates[name]), world, most)
                yield Convergence(name, num_items, seed, steps, most, rates[name])


def mean_steps(rows: Sequence[Convergence], learner: str) -> dict[int, float]:
    """Geometric mean over the seeds for each N at which every seed got there and took a step."""
    own = [row for row in rows if row.learner == learner]
    by_size = {size: [row.steps for row in own if row.num_items == size] for size in {row.num_items for row in own}}
    return {
        size: math.exp(sum(map(math.log, steps)) / len(steps))
        for size, steps in sorted(by_size.items())
        if min(steps) > 0
    }


def growth(steps: Mapping[int, float]) -> float | None:
    """The slope of log steps over log N by least squares; None for fewer than two."""
    if len(steps) < 2:
        return None
    sizes, counts = ([math.log(value) for value in values] for values in (steps.keys(), steps.values()))
    middle, mean = sum(sizes) / len(sizes), sum(counts) / len(counts)
    covariance = sum((size - middle) * (count - mean) for size, count in zip(sizes, counts, strict=True))
    return covariance / sum((size - middle) ** 2 for size in sizes)


def convergence_grids(rows: Sequence[Convergence]) -> list[Grid]:
    """Steps over N, and how they grow."""
    sizes = sorted({row.num_items for row in rows})
    lines = []
    for name in dict.fromkeys(row.learner for row in rows):
        steps = mean_steps(rows, name)
        slope = growth(steps) if len(steps) == len(sizes) else None
        cells = [f"{steps[size]:.0f}" if size in steps else f"> {rows[0].most}" for size in sizes]
        rate = next(row.learning_rate for row in rows if row.learner == name)
        lines.append([f"{name}, rate {rate:g}", *cells, "" if slope is None else f"{slope:.2f}"])
    caption = (
        f"{CONTEXTS} contexts, batch {BATCH}, {len({row.seed for row in rows})} seed(s); the "
        "exponent is the slope of log steps over log N of who always got there. pg-ret is told by an oracle what is "
        "relevant."
    )
    head = ["", *(f"N={size:,}" for size in sizes), "exponent"]
    return [Grid(f"Steps to {SHARE:.0%} of the optimum", head, lines, caption)] if rows else []
