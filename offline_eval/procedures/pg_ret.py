"""PG-Ret against its supervised start on KuaiRec: a retriever's top list, judged by another oracle than the reward's.

The reward's oracle calls a pair relevant where the semi-synthetic watch ratio is above ORACLE_ABOVE; the judge is the
real label 1{watch_ratio > 2}. So the oracle misses nothing and is right about 41 % of what it calls relevant: the rest
are real irrelevant pairs, whose watch ratio was drawn from real values. The supervised runs learn from the same oracle.

What is chosen is not what is reported: the judge's labels of the validating contexts end a run, those of the others
are reported; settings were chosen on a seed that is not. The oracle knows nothing of the hidden pairs, so what a
policy finds among them was not told to it.

Axes: C contexts, N items, J items of a list, V contexts that are judged.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor

from esr_trainer.command_line import Options
from esr_trainer.environments import read_world
from esr_trainer.relevance_oracles import world_labels
from esr_trainer.replicas import Mean, mean_over_seeds
from esr_trainer.world import World
from offline_eval.procedures.ranked_labels import ranked_labels
from offline_eval.replay.list_measures import share_found

ORACLE_ABOVE = 1.5
"""Watch ratio above which the reward's oracle calls a pair relevant; the judge's is 2."""
LIST = 10
"""Items of a list."""
HIDDEN, VALIDATING = 0.2, 0.3
"""Share of the pairs that the oracle knows nothing of, and of the contexts that settings and stops are chosen by."""
MEASURES = ("recall@1", "recall@10", "novelty@10", "precision@1", "precision@5", "hidden recall@10")
"""`hidden recall@10` is that of lists of hidden pairs alone."""


class Judged(Options):
    """One policy's result."""

    policy: str
    seed: int
    steps: int
    """Gradient steps of its last estimator; 0 where nothing was learned."""
    measures: dict[str, float]
    """MEASURES by the judge, on the contexts that do not validate."""
    by_oracle: dict[str, float]
    """The same by the reward's oracle."""


class Question(NamedTuple):
    """What is learned and judged."""

    data: Path
    """File of the world."""
    world: World
    judge: Tensor
    """The judge's labels, 0 or 1, (C, N)."""
    oracle: Tensor
    """The reward's oracle's, 0 or 1, (C, N)."""
    hidden: Tensor
    """Which pairs it knows nothing of, (C, N) bool."""
    validating: Tensor
    """Contexts, (V,); the others are reported."""
    reported: Tensor

    @classmethod
    def of(cls, data: Path, judge: Tensor) -> Self:
        """A file's world, and the judge's labels of it; what is hidden and what validates is the same for all seeds."""
        world, generator = read_world(data), torch.Generator().manual_seed(0)
        order = torch.randperm(world.num_contexts, generator=generator)
        count = max(1, round(VALIDATING * world.num_contexts))
        hidden = torch.rand(judge.shape, generator=generator) < HIDDEN
        return cls(data, world, judge, world_labels(world, ORACLE_ABOVE), hidden, order[:count], order[count:])

    def relevance(self, contexts: Tensor, items: Tensor) -> Tensor:
        """What the reward's oracle says; nan of a hidden pair: (B,), (B, K) -> (B, K)."""
        pairs = contexts[:, None], items
        return self.oracle[pairs].masked_fill(self.hidden[pairs], torch.nan)


def top(scores: Tensor) -> Tensor:
    """The lists of scores, (V, N) -> (V, LIST)."""
    return scores.topk(LIST, dim=1).indices


def measure(question: Question, labels: Tensor, scores: Tensor, base: Tensor, rows: Tensor) -> dict[str, float]:
    """MEASURES of a policy's lists.

    Args:
        question: what is hidden.
        labels: 0 or 1, (C, N).
        scores: the policy's, (C, N).
        base: the base's, (C, N).
        rows: contexts that are judged, (V,).
    """
    labels, scores, hidden = labels[rows], scores[rows], question.hidden[rows]
    lists = top(scores)
    at = {cut: ranked_labels(labels, lists, cut) for cut in (1, 5, LIST)}
    of_hidden = ranked_labels(labels * hidden, top(scores.masked_fill(~hidden, -torch.inf)), LIST)
    return {
        "recall@1": at[1].recall,
        "recall@10": at[10].recall,
        "novelty@10": 1 - float(share_found(lists, top(base[rows])).mean()),
        "precision@1": at[1].precision,
        "precision@5": at[5].precision,
        "hidden recall@10": of_hidden.recall,
    }


def by_policy(judged: Sequence[Judged]) -> dict[str, list[Judged]]:
    """The results of each policy, by seed."""
    names = dict.fromkeys(one.policy for one in judged)
    return {name: sorted((one for one in judged if one.policy == name), key=lambda one: one.seed) for name in names}


def means(own: Sequence[Judged]) -> dict[str, Mean]:
    """MEASURES over the seeds."""
    return {name: mean_over_seeds([one.measures[name] for one in own]) for name in MEASURES}


def differences(own: Sequence[Judged], others: Sequence[Judged]) -> dict[str, Mean]:
    """By how much a policy is above another of the same seeds, paired."""
    pairs = list(zip(own, others, strict=True))
    return {
        name: mean_over_seeds([one.measures[name] - other.measures[name] for one, other in pairs]) for name in MEASURES
    }
