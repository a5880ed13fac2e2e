"""The procedure of Ma et al., WWW 2020 (doi:10.1145/3366423.3380130): rankers that learn from bandit feedback.

Full labels -> a logging policy that is trained on a little of them -> five bandit samples per user -> a late-stage
ranker that is fitted to the samples -> an ESR by each of LOGGED_LOSSES -> one-stage lists (the ESR's own) and two-stage
lists (its K candidates, ordered by the ranker) against the labels.

Axes: C contexts, N items, K candidates.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esr_trainer import reward_model
from esr_trainer.command_line import Options
from esr_trainer.config import OFF_POLICY, TrainConfig
from esr_trainer.environments import read_world
from esr_trainer.late_stage_rankers import LATE_STAGE_RANKERS
from esr_trainer.log_training import Ground, as_interactions, chunks, new_log_trainer
from esr_trainer.logged_batches import Log, Parts
from esr_trainer.logged_losses import LoggedBatch
from esr_trainer.policy_value import CHUNK, System
from esr_trainer.towers import EarlyStageRanker
from esr_trainer.world import World
from offline_eval.ranked_labels import CUTS, by_name

SAMPLES = 5
"""Bandit samples per user."""
NUM_CANDIDATES = 30
"""k of 2-IPS, and what the ESR hands to the ranker."""
LITTLE = 0.01
"""Share of the labels that the logging policy is trained on."""
LOGGING_STEPS = 200
LOGGING_LEARNING_RATE = 0.03
RANKER_TEMPERATURE = 0.1
"""Of the ranker's softmax, whose scores are expected labels: the largest lead of one item over another is then 10."""
CHOSEN_BY = "two-stage ndcg@10"
"""A loss's learning rate is the one with the highest mean of this, on seeds of their own."""
TUNING_SEED = 1000
"""The first seed of the runs that choose the learning rates."""

RIVALS = tuple(name for name in OFF_POLICY if name != "infonce")
"""Losses that are compared; `infonce` nears `ce`, which is among them, and is a start for others."""

LOGGING, POPULAR = "logging policy", "popular list"
"""What is judged beside the losses: the policy that logged, and the items that earned most in the log."""

WORLDS: Mapping[str, Callable[[Path], World]] = {
    "kuairec-labels": lambda shared: read_world(shared / "data" / "kuairec" / "small_matrix_gt2.npz"),
}
"""Name -> folder of real data -> a world whose expected rewards are labels, 0 or 1."""


class Budget(NamedTuple):
    """How much is run."""

    runs: int
    """Seeds of the result."""
    tuning_runs: int
    """Seeds that choose the learning rates."""
    steps: int
    learning_rates: tuple[float, ...]


BUDGETS: Mapping[str, Budget] = {
    "smoke": Budget(2, 1, 10, (0.03,)),
    "short": Budget(3, 1, 150, (0.03, 0.1)),
    "paper": Budget(20, 5, 3000, (0.001, 0.003, 0.01, 0.03, 0.1)),
}


class Judged(Options):
    """One run's result."""

    policy: str
    """A name in LOGGED_LOSSES, LOGGING or POPULAR."""
    seed: int
    """Decides the logging policy, its samples, the ranker and the run."""
    steps: int
    learning_rate: float
    measures: dict[str, float]
    """`one-stage precision@5` and so on."""


class Feedback(NamedTuple):
    """What one seed's runs learn from."""

    labels: Tensor
    """(C, N)."""
    ground: Ground
    """The log, the ranker and its scores, (C, N)."""
    logging: EarlyStageRanker


def settings(estimator: str, steps: int, learning_rate: float, seed: int) -> TrainConfig:
    """An ESR of one expert with the published alpha, tau and k."""
    return TrainConfig.model_validate(
        {
            "from_log": "bandit samples",
            "estimator": estimator,
            "experts": 1,
            "candidates": NUM_CANDIDATES,
            "set_size": NUM_CANDIDATES,
            "lsr_temperature": RANKER_TEMPERATURE,
            "steps": steps,
            "learning_rate": learning_rate,
            "seed": seed,
        }
    )


def log_of(world: World, contexts: Tensor, items: Tensor, propensities: Tensor) -> Log:
    """Showings of items in contexts, (R,) each, rewarded by their labels."""
    rewards = world.expected_reward[contexts, items]
    batch = LoggedBatch(contexts, items, rewards, propensities, propensities)
    return Log("bandit samples", "", world.context_ids, world.item_ids, batch, True, "")


def ground_of(log: Log, system: System, scores: Tensor | None) -> Ground:
    """Everything is learned from; the labels tell what that is worth."""
    return Ground(log, Parts(log.showings, log.showings), system, None, scores)


def learned(config: TrainConfig, ground: Ground) -> EarlyStageRanker:
    """The ESR after the settings' steps."""
    learner = new_log_trainer(config, ground)
    while learner.step < config.steps:
        learner.advance()
    return learner.policy


def oracle_system(world: World) -> System:
    """The system of a world before there is a ranker."""
    return System(LATE_STAGE_RANKERS["optimal"], world.scores, NUM_CANDIDATES, torch.ones(1))


def logging_policy(world: World, seed: int) -> EarlyStageRanker:
    """An ESR that was trained by cross-entropy on LITTLE of the labels, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    count = round(LITTLE * world.num_contexts * world.num_items)
    cells = torch.randint(world.num_contexts * world.num_items, (count,), generator=generator)
    everywhere = torch.full((count,), 1 / world.num_items)
    log = log_of(world, cells // world.num_items, cells % world.num_items, everywhere)
    positive = log.showings.take(log.showings.rewards.nonzero()[:, 0])  # the others have no gradient
    ground = ground_of(log, oracle_system(world), None)._replace(parts=Parts(positive, positive))
    return learned(settings("ce", LOGGING_STEPS, LOGGING_LEARNING_RATE, seed), ground)


@lru_cache(maxsize=1)
def feedback_of(world: World, seed: int) -> Feedback:
    """The log that a seed's logging policy leaves, and the ranker that is fitted to it; the same for every loss."""
    logging = logging_policy(world, seed)
    generator = torch.Generator().manual_seed(seed)
    contexts = torch.arange(world.num_contexts).repeat_interleave(SAMPLES)
    with torch.no_grad():
        shown = [logging(rows)[:, 0].softmax(dim=1) for rows in chunks(world.num_contexts, CHUNK)]
    items = torch.cat([torch.multinomial(chance, SAMPLES, True, generator=generator) for chance in shown])
    propensities = torch.cat(shown).gather(1, items)
    log = log_of(world, contexts, items.flatten(), propensities.flatten())
    interactions = as_interactions(log.showings)
    model, _ = reward_model.fit(interactions, world.num_contexts, world.num_items, seed, "fitting the ranker")
    scores = model.matrix()
    system = System(
        LATE_STAGE_RANKERS["learned"], lambda rows, items: scores[rows[:, None], items], NUM_CANDIDATES, torch.ones(1)
    )
    return Feedback(world.expected_reward, ground_of(log, system, scores), logging)


def run_one(world: World, policy: str, seed: int, steps: int, learning_rate: float) -> Judged:
    """Train one ESR by a loss, and judge it."""
    feedback = feedback_of(world, seed)
    ground = feedback.ground if policy == "two-stage-ips" else feedback.ground._replace(scores=None)
    config = settings(policy, steps, learning_rate, seed)
    measures = judge(feedback, logits_of(learned(config, ground), feedback))
    return Judged(policy=policy, seed=seed, steps=steps, learning_rate=learning_rate, measures=measures)


def references(world: World, seed: int) -> list[Judged]:
    """LOGGING and POPULAR."""
    feedback = feedback_of(world, seed)
    showings = feedback.ground.log.showings
    earned = torch.zeros(world.num_items).index_add_(0, showings.items, showings.rewards / showings.propensities)
    logits = {LOGGING: logits_of(feedback.logging, feedback), POPULAR: earned.expand(world.num_contexts, -1)}
    return [
        Judged(policy=name, seed=seed, steps=0, learning_rate=0.0, measures=judge(feedback, of))
        for name, of in logits.items()
    ]


@torch.no_grad()
def logits_of(policy: EarlyStageRanker, feedback: Feedback) -> Tensor:
    """One expert's logits of everything, (C, N)."""
    return torch.cat([policy(rows)[:, 0] for rows in chunks(len(feedback.labels), CHUNK)])


def judge(feedback: Feedback, logits: Tensor) -> dict[str, float]:
    """The measures of the ESR's own order, and of its candidates in the ranker's: (C, N)."""
    candidates = logits.topk(NUM_CANDIDATES).indices
    scores = feedback.ground.system.scores(torch.arange(len(candidates)), candidates)
    ordered = candidates.gather(1, scores.argsort(dim=1, descending=True, stable=True))
    lists = {"one-stage": candidates, "two-stage": ordered}
    return {
        f"{stage} {name}": value
        for stage, items in lists.items()
        for name, value in by_name(feedback.labels, items).items()
    }


def experiment(world: World, budget: Budget, known: list[Judged]) -> Iterator[Judged]:
    """Every run that is not known yet: first those that choose the learning rates, then those of the result."""
    done = {(one.policy, one.seed, one.steps, one.learning_rate): one for one in known}

    def run(policy: str, seed: int, learning_rate: float) -> Iterator[Judged]:
        key = (policy, seed, budget.steps, learning_rate)
        if key not in done:
            done[key] = run_one(world, *key)
            yield done[key]

    for seed in range(TUNING_SEED, TUNING_SEED + budget.tuning_runs):
        for policy in RIVALS:
            for learning_rate in budget.learning_rates:
                yield from run(policy, seed, learning_rate)
    rates = best_rates(list(done.values()), budget)
    for seed in range(budget.runs):
        if (LOGGING, seed, 0, 0.0) not in done:
            yield from references(world, seed)
        for policy in RIVALS:
            yield from run(policy, seed, rates[policy])


def best_rates(judged: list[Judged], budget: Budget) -> dict[str, float]:
    """Each loss's learning rate of the highest mean of CHOSEN_BY, on the seeds that are for choosing."""
    seeds = range(TUNING_SEED, TUNING_SEED + budget.tuning_runs)

    def mean(policy: str, learning_rate: float) -> float:
        wanted = (policy, budget.steps, learning_rate)
        values = [
            one.measures[CHOSEN_BY]
            for one in judged
            if (one.policy, one.steps, one.learning_rate) == wanted and one.seed in seeds
        ]
        return sum(values) / len(values)

    return {policy: max(budget.learning_rates, key=lambda rate: mean(policy, rate)) for policy in RIVALS}


def of_result(judged: list[Judged], budget: Budget) -> dict[str, list[Judged]]:
    """The runs of the result by policy, seed by seed."""
    rates = best_rates(judged, budget) | {LOGGING: 0.0, POPULAR: 0.0}
    return {
        policy: sorted(
            (
                one
                for one in judged
                if one.policy == policy
                and one.seed < budget.runs
                and one.learning_rate == rate
                and one.steps in (0, budget.steps)
            ),
            key=lambda one: one.seed,
        )
        for policy, rate in rates.items()
    }


MEASURES = tuple(
    f"{stage} {name}@{cut}"
    for stage in ("one-stage", "two-stage")
    for name in ("precision", "recall", "ndcg")
    for cut in CUTS
)


def facts() -> dict[str, Any]:
    """What decides the procedure, beside the budget."""
    return {
        "samples per user": SAMPLES,
        "candidates": NUM_CANDIDATES,
        "share of the labels that the logging policy is trained on": LITTLE,
        "temperature of the ranker's softmax": RANKER_TEMPERATURE,
        "learning rate chosen by": CHOSEN_BY,
    }
