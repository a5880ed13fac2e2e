"""The procedure of Ma et al., WWW 2020 (doi:10.1145/3366423.3380130): rankers that learn from bandit feedback.

Full labels, simulated where they are missing -> a logging policy that is trained on a little of them -> five bandit
samples per user -> a late-stage ranker that is fitted to the samples -> an ESR by each of LOGGED_LOSSES -> one-stage
lists (the ESR's own) and two-stage lists (its K candidates, ordered by the ranker) against the labels. As in the
published code the losses see the samples that were rewarded, since the others have no gradient; unlike there, a run
stops by samples that it holds out, not by labels.

Axes: C contexts, N items, K candidates.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esr_trainer.command_line import Options, UsageError
from esr_trainer.config import OFF_POLICY, TrainConfig
from esr_trainer.late_stage_rankers import LATE_STAGE_RANKERS
from esr_trainer.log_training import Ground, as_interactions, chunks, new_log_trainer
from esr_trainer.logged_batches import Log, Parts
from esr_trainer.logged_losses import LoggedBatch
from esr_trainer.policy_value import CHUNK, System
from esr_trainer.towers import EarlyStageRanker
from esr_trainer.world import World
from offline_eval.procedures import joined_network
from offline_eval.procedures.extreme_classification import extreme_classification
from offline_eval.procedures.labelled_worlds import LabelledWorld, kuairec_labels
from offline_eval.procedures.movielens import movielens
from offline_eval.procedures.ranked_labels import by_name

SAMPLES = 5
"""Bandit samples per user."""
NUM_CANDIDATES = 30
"""k of 2-IPS, and what the ESR hands to the ranker."""
LITTLE = 0.01
"""Share of the labels that the logging policy is trained on."""
LOGGING_STEPS = 400
LOGGING_LEARNING_RATE = 0.03
HELD_OUT = 0.2
"""The part of the rewarded samples by whose recall among the candidates a run stops."""
EVALUATE_EVERY = 5
LEAST_STEPS = 50
"""Steps before the first evaluation: the recall of the few that are held out is high by chance in some early steps."""
PATIENCE = 8
"""Evaluations without a higher held-out recall after which a run ends, and goes back to the highest."""
TUNING_SEED = 1000
"""The first seed of the runs that choose the learning rates."""

RIVALS = tuple(name for name in OFF_POLICY if name != "infonce")
"""Losses that are compared; `infonce` nears `ce`, which is among them, and is a start for others."""

LOGGING, POPULAR, RANKER, RANDOM = "logging policy", "popular list", "ranker alone", "random list"
"""What is judged beside the losses: the policy that logged, the items that were rewarded most often in the log, the
ranker on the whole catalogue, and items at random."""
REFERENCES = (LOGGING, POPULAR, RANKER, RANDOM)

WORLDS: Mapping[str, Callable[[Path], LabelledWorld]] = {
    "kuairec-labels": kuairec_labels,
    "movielens": movielens,
    "xmc": extreme_classification,
}
"""Name -> data -> labels and features."""


Cuts = tuple[int, ...]
"""n of Precision@n and so on, ascending."""


class Budget(NamedTuple):
    """How much is run."""

    runs: int
    """Seeds of the result."""
    tuning_runs: int
    """Seeds that choose the learning rates."""
    steps: int
    """At most."""
    learning_rates: tuple[float, ...]


BUDGETS: Mapping[str, Budget] = {
    "smoke": Budget(2, 1, 10, (0.03,)),
    "short": Budget(3, 2, 400, (0.001, 0.003, 0.01, 0.03)),
    "paper": Budget(20, 5, 400, (0.001, 0.003, 0.01, 0.03, 0.1)),
}


class Judged(Options):
    """One run's result."""

    policy: str
    """A name in LOGGED_LOSSES or REFERENCES."""
    seed: int
    """Decides the logging policy, its samples, the ranker and the run."""
    steps: int
    learning_rate: float
    measures: dict[str, float]
    """`one-stage precision@5` and so on."""


class Feedback(NamedTuple):
    """What one seed's runs learn from."""

    labelled: LabelledWorld
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
            "steps": steps,
            "evaluate_every": EVALUATE_EVERY,
            "patience": PATIENCE,
            "learning_rate": learning_rate,
            "seed": seed,
        }
    )


def log_of(name: str, world: World, contexts: Tensor, items: Tensor, propensities: Tensor) -> Log:
    """Impressions of items in contexts, (R,) each, rewarded by their labels."""
    rewards = world.expected_reward[contexts, items]
    batch = LoggedBatch(contexts, items, rewards, propensities, propensities)
    return Log(name, "", world.context_ids, world.item_ids, batch, True, "")


def ground_of(log: Log, system: System, scores: Tensor | None, seed: int) -> Ground:
    """The rewarded impressions, some of them held out; the others have no gradient.

    Raises:
        UsageError: there are too few.
    """
    rewarded = log.impressions.rewards.nonzero()[:, 0]
    count = round(HELD_OUT * len(rewarded))
    if not count:
        raise UsageError(f"{log.description}: {len(rewarded)} are rewarded, too few to learn from and to hold out")
    order = rewarded[torch.randperm(len(rewarded), generator=torch.Generator().manual_seed(seed))]
    return Ground(
        log, Parts(log.impressions.take(order[count:]), log.impressions.take(order[:count])), system, None, scores
    )


def learned(config: TrainConfig, ground: Ground, labelled: LabelledWorld) -> EarlyStageRanker:
    """The ESR of the highest held-out recall."""
    learner = new_log_trainer(config, ground, labelled.towers)
    best = learner.policy.state_dict()
    while learner.step < config.steps and learner.metrics.get("evaluations_since_best", 0) < config.patience:
        learner.advance()
        if learner.step >= min(LEAST_STEPS, config.steps) and learner.evaluation_is_due:
            learner.evaluate()
            if not learner.metrics["evaluations_since_best"]:
                best = {name: value.clone() for name, value in learner.policy.state_dict().items()}
    learner.policy.load_state_dict(best)
    return learner.policy


def logging_policy(labelled: LabelledWorld, seed: int) -> EarlyStageRanker:
    """An ESR that was trained by cross-entropy on LITTLE of the labels, drawn at random."""
    world, generator = labelled.world, torch.Generator().manual_seed(seed)
    count = round(LITTLE * world.num_contexts * world.num_items)
    cells = torch.randint(world.num_contexts * world.num_items, (count,), generator=generator)
    everywhere = torch.full((count,), 1 / world.num_items)
    log = log_of(f"{LITTLE:.0%} of the labels", world, cells // world.num_items, cells % world.num_items, everywhere)
    oracle = System(LATE_STAGE_RANKERS["optimal"], world.scores, NUM_CANDIDATES, torch.ones(1))  # no ranker yet
    ground = ground_of(log, oracle, None, seed)
    return learned(settings("ce", LOGGING_STEPS, LOGGING_LEARNING_RATE, seed), ground, labelled)


def bandit_log(world: World, logging: EarlyStageRanker, seed: int) -> Log:
    """SAMPLES draws per user of the policy that logs."""
    generator = torch.Generator().manual_seed(seed)
    contexts = torch.arange(world.num_contexts)
    with torch.no_grad():
        shown = [logging(rows)[:, 0].softmax(dim=1) for rows in torch.split(contexts, CHUNK)]
    items = [torch.multinomial(chance, SAMPLES, True, generator=generator) for chance in shown]
    propensities = torch.cat([chance.gather(1, drawn) for chance, drawn in zip(shown, items, strict=True)])
    return log_of(
        "bandit samples", world, contexts.repeat_interleave(SAMPLES), torch.cat(items).flatten(), propensities.flatten()
    )


def feedback_of(labelled: LabelledWorld, seed: int) -> Feedback:
    """The log that a seed's logging policy leaves, and the ranker that is fitted to it."""
    logging = logging_policy(labelled, seed)
    log = bandit_log(labelled.world, logging, seed)
    # a chance given context and item needs no weight for how the pair was chosen
    interactions = as_interactions(log.impressions)._replace(weights=torch.ones(len(log.impressions.rewards)))
    scores = joined_network.fit(labelled.contexts, labelled.items, interactions, seed).matrix()
    system = System(
        LATE_STAGE_RANKERS["learned"], lambda rows, items: scores[rows[:, None], items], NUM_CANDIDATES, torch.ones(1)
    )
    return Feedback(labelled, ground_of(log, system, scores, seed), logging)


def run_one(feedback: Feedback, policy: str, seed: int, steps: int, learning_rate: float) -> Judged:
    """Train one ESR by a loss, and judge it."""
    ground = feedback.ground if policy == "two-stage-ips" else feedback.ground._replace(scores=None)
    config = settings(policy, steps, learning_rate, seed)
    esr = learned(config, ground, feedback.labelled)
    return Judged(
        policy=policy, seed=seed, steps=steps, learning_rate=learning_rate, measures=judge(feedback, logits_of(esr))
    )


def references(feedback: Feedback, seed: int) -> list[Judged]:
    """REFERENCES, which nothing is chosen for."""
    impressions, scores = feedback.ground.log.impressions, feedback.ground.scores
    assert scores is not None
    rewarded = torch.zeros(feedback.labelled.world.num_items).index_add_(0, impressions.items, impressions.rewards)
    generator = torch.Generator().manual_seed(seed)
    logits: Mapping[str, Logits] = {
        LOGGING: logits_of(feedback.logging),
        POPULAR: lambda rows: rewarded.expand(len(rows), -1),
        RANKER: lambda rows: scores[rows],
        RANDOM: lambda rows: torch.rand((len(rows), len(rewarded)), generator=generator),
    }
    return [
        Judged(policy=name, seed=seed, steps=0, learning_rate=0.0, measures=judge(feedback, logits[name]))
        for name in REFERENCES
    ]


Logits = Callable[[Tensor], Tensor]
"""Contexts (B,) -> what the first stage orders the catalogue by, (B, N)."""


def logits_of(policy: EarlyStageRanker) -> Logits:
    """One expert's logits."""
    return lambda rows: policy(rows)[:, 0]


@torch.no_grad()
def judge(feedback: Feedback, logits: Logits) -> dict[str, float]:
    """The measures of the ESR's own order, and of its candidates in the ranker's."""
    labels, cuts = feedback.labelled.world.expected_reward, feedback.labelled.cuts
    candidates = torch.cat([logits(rows).topk(NUM_CANDIDATES).indices for rows in chunks(len(labels), CHUNK)])
    scores = feedback.ground.system.scores(torch.arange(len(candidates)), candidates)
    ordered = candidates.gather(1, scores.argsort(dim=1, descending=True, stable=True))
    lists = {"one-stage": candidates, "two-stage": ordered}
    return {
        f"{stage} {name}": value
        for stage, items in lists.items()
        for name, value in by_name(labels, items, cuts).items()
    }


def open_labels(name: str, data: Path) -> LabelledWorld:
    """A world of WORLDS.

    Raises:
        UsageError: the data cannot be used, or has too few items.
    """
    labelled = WORLDS[name](data)
    if labelled.world.num_items < NUM_CANDIDATES:
        raise UsageError(f"data ({data}): {labelled.world.num_items} items are fewer than {NUM_CANDIDATES} candidates")
    return labelled


def experiment(labelled: LabelledWorld, budget: Budget, known: list[Judged]) -> Iterator[Judged]:
    """Every run that is not known yet: first those that choose the learning rates, then those of the result."""
    done = {(one.policy, one.seed, one.steps, one.learning_rate): one for one in known}
    feedback = lru_cache(maxsize=1)(partial(feedback_of, labelled))  # the same for every loss

    def run(policy: str, seed: int, learning_rate: float) -> Iterator[Judged]:
        key = (policy, seed, budget.steps, learning_rate)
        if key not in done:
            done[key] = run_one(feedback(seed), *key)
            yield done[key]

    for seed in range(TUNING_SEED, TUNING_SEED + budget.tuning_runs):
        for policy in RIVALS:
            for learning_rate in budget.learning_rates:
                yield from run(policy, seed, learning_rate)
    rates = best_rates(list(done.values()), budget, labelled.cuts)
    for seed in range(budget.runs):
        if (RANDOM, seed, 0, 0.0) not in done:
            yield from references(feedback(seed), seed)
        for policy in RIVALS:
            yield from run(policy, seed, rates[policy])


def best_rates(judged: list[Judged], budget: Budget, cuts: Cuts) -> dict[str, float]:
    """Each loss's learning rate of the highest mean of `chosen_by`, on the seeds that are for choosing."""
    seeds = range(TUNING_SEED, TUNING_SEED + budget.tuning_runs)

    def mean(policy: str, learning_rate: float) -> float:
        wanted = (policy, budget.steps, learning_rate)
        values = [
            one.measures[chosen_by(cuts)]
            for one in judged
            if (one.policy, one.steps, one.learning_rate) == wanted and one.seed in seeds
        ]
        return sum(values) / len(values)

    return {policy: max(budget.learning_rates, key=lambda rate: mean(policy, rate)) for policy in RIVALS}


def of_result(judged: list[Judged], budget: Budget, cuts: Cuts) -> dict[str, list[Judged]]:
    """The runs of the result by policy, seed by seed."""
    rates = best_rates(judged, budget, cuts) | dict.fromkeys(REFERENCES, 0.0)
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


def chosen_by(cuts: Cuts) -> str:
    """What a loss's learning rate has the highest mean of: the ranker, by itself, makes two-stage lists alike."""
    return f"one-stage ndcg@{cuts[-1]}"


def facts(cuts: Cuts) -> dict[str, Any]:
    """What decides the procedure, beside the budget."""
    return {
        "samples per user": SAMPLES,
        "candidates": NUM_CANDIDATES,
        "share of the labels that the logging policy is trained on": LITTLE,
        "part of the rewarded samples that a run stops by": HELD_OUT,
        "steps before a run may stop": LEAST_STEPS,
        "learning rate chosen by": chosen_by(cuts),
    }
