"""PG-Ret against its supervised start on KuaiRec: a retriever's top list, judged by another oracle than the reward's.

The reward's oracle calls a pair relevant where the semi-synthetic watch ratio is above ORACLE_ABOVE; the judge is the
real label 1{watch_ratio > 2}. So the oracle misses nothing and is right about 41 % of what it calls relevant: the rest
are real irrelevant pairs, whose watch ratio was drawn from real values. The supervised runs learn from the same oracle.

Axes: C contexts, N items, J items of a list.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esr_trainer.command_line import Options
from esr_trainer.config import TrainConfig
from esr_trainer.learner import Learner
from esr_trainer.pg_ret import top_of
from esr_trainer.preparation import settle
from esr_trainer.relevance_oracles import world_labels
from esr_trainer.world import World
from offline_eval.procedures.ranked_labels import ranked_labels
from offline_eval.replay.list_measures import share_found

ORACLE_ABOVE = 1.5
"""Watch ratio above which the reward's oracle calls a pair relevant; the judge's is 2."""
LIST = 10
"""Items of a list."""
INFONCE = {"estimator": "infonce", "experts": 1, "learning_rate": 0.003}
"""The best of learning rates 0.001, 0.003, 0.01 and 0.03 after 4,000 steps, on a seed that is not of the result."""
GOALS: Mapping[str, Mapping[str, Any]] = {
    "recall": {"reward": "recall"},
    "novelty": {
        "reward": "novelty",
        "reward_top": LIST,
        "learning_rate": 0.003,
        "share_current": 0.25,
        "share_explored": 0.75,
    },
}
"""Reward -> settings of PG-Ret that are not the defaults, chosen on the same seed."""
NOVELTY_GAIN, NOVELTY_EVERY = 1.3, 25
"""PG-Ret for novelty ends once its lists are this much more novel than the supervised ones, which needs no label to be
known; it is looked at every so many steps. At 1.35, seeds 1 to 3 lost 9.7 % of precision@1, 10.3 % of precision@5."""
BASE, SUPERVISED, ORACLE, BEST = "base", "supervised (infonce)", "reward's oracle", "best possible"
MEASURES = ("recall@1", "recall@10", "novelty@10", "precision@1", "precision@5")


class Budget(NamedTuple):
    """How much is run."""

    seeds: tuple[int, ...]
    base_steps: int
    """After which InfoNCE's run is taken for the production model."""
    supervised_steps: int
    """After which it is the supervised one."""
    adapting_steps: int
    """At most."""


BUDGETS: Mapping[str, Budget] = {
    "smoke": Budget((1, 2), 5, 10, 5),
    "short": Budget((4, 5, 6), 1200, 4000, 1000),
}


class Judged(Options):
    """One policy's result."""

    policy: str
    seed: int
    measures: dict[str, float]
    """MEASURES by the judge."""
    by_oracle: dict[str, float]
    """The same by the reward's oracle."""


class Question(NamedTuple):
    """What is learned and judged."""

    data: Path
    """File of the world."""
    world: World
    judge: Tensor
    """The judge's labels, 0 or 1, (C, N)."""
    above: float
    """Of the reward's oracle."""

    @property
    def oracle(self) -> Tensor:
        """The reward's oracle's labels, (C, N)."""
        return world_labels(self.world, self.above)


def measure(labels: Tensor, lists: Tensor, base: Tensor) -> dict[str, float]:
    """MEASURES of lists, (C, LIST), best first."""
    at = {cut: ranked_labels(labels, lists, cut) for cut in (1, 5, 10)}
    return {
        "recall@1": at[1].recall,
        "recall@10": at[10].recall,
        "novelty@10": novelty(lists, base),
        "precision@1": at[1].precision,
        "precision@5": at[5].precision,
    }


def settings(question: Question, **own: Any) -> TrainConfig:
    """Of a run in the question's world."""
    given = {"data": question.data, "candidates": min(100, question.world.num_items), **own}
    return TrainConfig.model_validate({**given, "relevance": {"relevant_above": question.above}})


def advanced(learner: Learner, steps: int) -> Learner:
    """A run, at a step, valued."""
    while learner.step < steps:
        learner.advance()
    learner.evaluate()
    return learner


def advance_to_novelty(learner: Learner, world: World, base: Tensor, goal: float) -> None:
    """Advance until the lists are as novel as that, or to the last step."""
    while learner.step < learner.config.steps and novelty(top_of(learner.policy, world, LIST), base) < goal:
        for _ in range(NOVELTY_EVERY):
            learner.advance()


def novelty(lists: Tensor, base: Tensor) -> float:
    """The share of lists, (C, J), that is absent from the base's."""
    return 1 - float(share_found(lists, base).mean())


def lists_of_seed(question: Question, budget: Budget, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Each policy's lists, (C, LIST); the base's come first."""
    with TemporaryDirectory() as folder:
        base, supervised = Path(folder, "base"), Path(folder, "supervised")
        learner = settle(settings(question, **INFONCE, seed=seed, steps=budget.supervised_steps)).begin()
        advanced(learner, budget.base_steps).save(base)
        yield BASE, (production := top_of(learner.policy, question.world, LIST))
        advanced(learner, budget.supervised_steps).save(supervised)
        yield SUPERVISED, (lists := top_of(learner.policy, question.world, LIST))
        for goal, own in GOALS.items():
            init = {"estimator": "pg-ret", "init": supervised, "production": base}
            config = settings(question, **init, **own, seed=seed, steps=budget.adapting_steps)
            adapting = settle(config).begin()
            if goal == "novelty":
                advance_to_novelty(adapting, question.world, production, NOVELTY_GAIN * novelty(lists, production))
            else:
                advanced(adapting, budget.adapting_steps)
            yield f"pg-ret, {goal}", top_of(adapting.policy, question.world, LIST)
    generator = torch.Generator().manual_seed(seed)
    for name, labels in ((ORACLE, question.oracle), (BEST, question.judge)):  # ties, and 0 and 1 are many, at random
        yield name, (labels + 0.5 * torch.rand(labels.shape, generator=generator)).topk(LIST).indices


def judge_seed(question: Question, budget: Budget, seed: int) -> list[Judged]:
    """Every policy of a seed."""
    lists = dict(lists_of_seed(question, budget, seed))
    return [
        Judged(
            policy=name,
            seed=seed,
            measures=measure(question.judge, items, lists[BASE]),
            by_oracle=measure(question.oracle, items, lists[BASE]),
        )
        for name, items in lists.items()
    ]


def by_policy(judged: Sequence[Judged]) -> dict[str, list[Judged]]:
    """The results of each policy."""
    names = dict.fromkeys(one.policy for one in judged)
    return {name: [one for one in judged if one.policy == name] for name in names}
