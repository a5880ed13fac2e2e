"""What is compared on KuaiRec: base, supervised, supervised gone on, PG-Ret for each goal, and the bounds.

Axes: C contexts, N items.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esr_trainer.checkpoint import Checkpoint
from esr_trainer.config import TrainConfig
from esr_trainer.learner import Learner
from esr_trainer.log_training import LogTrainer, with_policy
from esr_trainer.pg_ret import AdaptingTrainer
from esr_trainer.preparation import FromLog, settle
from offline_eval.procedures.pg_ret import LIST, ORACLE_ABOVE, Judged, Question, measure

INFONCE = {"estimator": "infonce", "experts": 1, "embedding_dim": 32, "learning_rate": 0.001}
"""Of learning rates 0.001 and 0.003, on a seed that is not reported. On that seed 10 dimensions made as good a
supervised run, and left PG-Ret next to nothing to gain: the items are fixed, and a context has as many numbers to tell
them apart by."""
ADAPTING = {"estimator": "pg-ret", "reward_top": LIST, "candidates": 30, "learning_rate": 0.002}
"""Chosen on the same seed: the reward speaks of the list that is judged, and pairs are drawn from its margin."""
GOALS: Mapping[str, Mapping[str, Any]] = {
    "recall": {"reward": "recall"},
    "novelty": {"reward": "novelty", "share_current": 0.25, "share_explored": 0.75},
}
"""Reward -> settings of PG-Ret beside ADAPTING."""
LOOK, PATIENCE = 500, 4
"""The supervised run is looked at every so many steps, and ends when its recall@10 has not grown for so many looks."""
PRECISION_KEPT, NOVELTY_LOOK = 0.95, 100
"""PG-Ret for novelty is looked at every so many steps, and taken at its most novel look of those that keep this share
of its start's precision@5; both are of the validating contexts."""
BASE, SUPERVISED, ORACLE, BEST = "base", "supervised (infonce)", "reward's oracle", "best possible"
GONE_ON, CONTEXTS_GONE_ON = "supervised, gone on", "supervised, contexts gone on"


class Budget(NamedTuple):
    """How much is run."""

    seeds: tuple[int, ...]
    base_steps: int
    """After which InfoNCE's run is taken for the production model."""
    supervised_steps: int
    """At most."""
    look: int
    """Steps between two looks at the supervised run."""
    adapting_steps: int
    """Of PG-Ret, and of the supervised run that goes on."""


BUDGETS: Mapping[str, Budget] = {
    "smoke": Budget((1, 2), 5, 20, 5, 10),
    "short": Budget((4, 5, 6, 7, 8), 2500, 12_000, LOOK, 2000),
}


class Learned(NamedTuple):
    """A policy that was learned."""

    name: str
    steps: int
    scores: Tensor
    """(C, N)."""


@dataclass(frozen=True)
class Experiment:
    """One seed."""

    question: Question
    budget: Budget
    seed: int
    folder: Path
    """Of the base and the supervised run."""

    def settings(self, **own: Any) -> TrainConfig:
        """Of a run in the question's world."""
        most = self.question.world.num_items
        given = {"candidates": 100, **own, "data": self.question.data, "seed": self.seed}
        given["candidates"] = min(int(given["candidates"]), most)
        return TrainConfig.model_validate({**given, "relevance": {"relevant_above": ORACLE_ABOVE}})

    def supervision(self) -> FromLog:
        """InfoNCE on what the oracle calls relevant, but for the hidden pairs."""
        settled = settle(self.settings(**INFONCE, steps=2 * self.budget.supervised_steps))
        if not isinstance(settled, FromLog):
            raise TypeError("infonce learns from a log")
        learned = settled.parts.learned
        known = ~self.question.hidden[learned.contexts, learned.items]
        return replace(settled, parts=settled.parts._replace(learned=learned.take(known.nonzero()[:, 0])))

    def validated(self, scores: Tensor, base: Tensor) -> dict[str, float]:
        """What the judge says of the validating contexts."""
        return measure(self.question, self.question.judge, scores, base, self.question.validating)

    def supervised(self) -> Iterator[Learned]:
        """The base, and the run at its best recall@10; both are kept in the folder."""
        learner = advanced(self.supervision().begin(), self.budget.base_steps)
        learner.save(self.folder / BASE)
        base = scores_of(learner)
        yield Learned(BASE, learner.step, base)
        best, recall, looks = Learned(SUPERVISED, 0, base), -1.0, 0
        while looks < PATIENCE and learner.step < self.budget.supervised_steps:
            scores = scores_of(advanced(learner, learner.step + self.budget.look))
            found, looks = self.validated(scores, base)["recall@10"], looks + 1
            if found > recall:
                best, recall, looks = Learned(SUPERVISED, learner.step, scores), found, 0
                learner.save(self.start_at(learner.step))
        yield best

    def start_at(self, step: int) -> Path:
        """Where the supervised run at a step is."""
        return self.folder / f"supervised-{step}"

    def gone_on(self, start: Learned, part: Callable[[LogTrainer], LogTrainer]) -> Tensor:
        """The scores of the supervised run, or of a part of it, after as many more steps as PG-Ret takes."""
        learner = self.supervision().go_on(Checkpoint(self.start_at(start.steps)))
        if not isinstance(learner, LogTrainer):
            raise TypeError("infonce learns from a log")
        return scores_of(advanced(part(learner), start.steps + self.budget.adapting_steps))

    def adapting(self, goal: str, start: Learned) -> AdaptingTrainer:
        """PG-Ret at its first step, rewarded by what the oracle knows."""
        own = {"init": self.start_at(start.steps), "production": self.folder / BASE, **ADAPTING, **GOALS[goal]}
        learner = settle(self.settings(**own, steps=self.budget.adapting_steps)).begin()
        if not isinstance(learner, AdaptingTrainer):
            raise TypeError("pg-ret adapts a run")
        return replace(learner, ground=learner.ground._replace(oracle=self.question))

    def for_novelty(self, start: Learned, base: Tensor) -> Learned:
        """PG-Ret for novelty at its most novel look that keeps the precision; the start where none does."""
        learner, began = self.adapting("novelty", start), self.validated(start.scores, base)
        best, novelty = Learned("pg-ret, novelty", 0, start.scores), began["novelty@10"]
        while learner.step < self.budget.adapting_steps:
            step = min(learner.step + NOVELTY_LOOK, self.budget.adapting_steps)
            scores = scores_of(advanced(learner, step))
            found = self.validated(scores, base)
            if found["precision@5"] >= PRECISION_KEPT * began["precision@5"] and found["novelty@10"] > novelty:
                best, novelty = Learned(best.name, learner.step, scores), found["novelty@10"]
        return best

    def policies(self) -> Iterator[Learned]:
        """Every policy; the base comes first."""
        base, start = self.supervised()
        yield from (base, start)
        more = self.budget.adapting_steps
        yield Learned(GONE_ON, more, self.gone_on(start, lambda learner: learner))
        yield Learned(CONTEXTS_GONE_ON, more, self.gone_on(start, contexts_alone))
        yield Learned("pg-ret, recall", more, scores_of(advanced(self.adapting("recall", start), more)))
        yield self.for_novelty(start, base.scores)
        generator, question = torch.Generator().manual_seed(self.seed), self.question
        for name, labels in ((ORACLE, question.oracle), (BEST, question.judge)):  # ties are broken at random
            yield Learned(name, 0, labels + 0.5 * torch.rand(labels.shape, generator=generator))


def contexts_alone(learner: LogTrainer) -> LogTrainer:
    """The same run, its items fixed and its optimizer new, as PG-Ret has them."""
    learner.policy.item_tower.requires_grad_(False)
    return replace(learner, optimizer=with_policy(learner.config, learner.ground, learner.policy).optimizer)


def advanced(learner: Learner, steps: int) -> Learner:
    """A run, at a step."""
    while learner.step < steps:
        learner.advance()
    return learner


@torch.no_grad()
def scores_of(learner: Learner) -> Tensor:
    """The logits of every pair, (C, N), of a run with one expert."""
    logits: Tensor = learner.policy(torch.arange(len(learner.policy.context_tower())))
    return logits[:, 0]


def judge_seed(question: Question, budget: Budget, seed: int) -> list[Judged]:
    """Every policy of a seed."""
    with TemporaryDirectory() as folder:
        learned = list(Experiment(question, budget, seed, Path(folder)).policies())
    base, rows = learned[0].scores, question.reported
    return [
        Judged(
            policy=one.name,
            seed=seed,
            steps=one.steps,
            measures=measure(question, question.judge, one.scores, base, rows),
            by_oracle=measure(question, question.oracle, one.scores, base, rows),
        )
        for one in learned
    ]
