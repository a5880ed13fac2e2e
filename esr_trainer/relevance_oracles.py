"""Relevance oracles: who says whether an item is relevant to a context. A reward, or a verdict, can be made of it.

Axes: C contexts, N items, B batch, K items of a context.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from esr_trainer.command_line import UsageError
from esr_trainer.pairs import Descriptions, Pair, ask_once, check_range, checked
from esr_trainer.relevance_options import RelevanceOptions
from esr_trainer.user_function import user_function
from esr_trainer.world import World

HTTP, GRPC = ("http://", "https://"), ("grpc://", "grpcs://")
"""How the URL of a judge begins."""


class RelevanceOracle(Protocol):
    """Says how relevant items are to contexts."""

    def relevance(self, contexts: Tensor, items: Tensor) -> Tensor:
        """From 0, irrelevant, to 1, relevant; nan where the oracle does not know.

        Args:
            contexts: rows, (B,).
            items: rows, (B,) or (B, K).

        Returns:
            Float32 in the shape of `items`.

        Raises:
            UsageError: no answer can be had, or it is not one.
        """


class LabelOracle:
    """A matrix of labels."""

    def __init__(self, labels: Tensor) -> None:
        """Take labels, (C, N) in [0, 1].

        Raises:
            UsageError: a label is not a number from 0 to 1.
        """
        check_range(labels.double().flatten().numpy(), "labels")
        self.labels = labels.float()

    def relevance(self, contexts: Tensor, items: Tensor) -> Tensor:
        """The labels of the pairs."""
        return self.labels[contexts.view(-1, *[1] * (items.dim() - 1)), items]


class PairOracle:
    """Whoever judges pairs of described rows."""

    def __init__(self, judge: Callable[[Sequence[Pair]], Sequence[float]], descriptions: Descriptions) -> None:
        self.judge = judge
        self.descriptions = descriptions

    def relevance(self, contexts: Tensor, items: Tensor) -> Tensor:
        """What the judge says of the pairs, each asked once."""
        contexts = contexts.view(-1, *[1] * (items.dim() - 1)).expand_as(items)
        pairs = [
            Pair(self.descriptions.contexts[context], self.descriptions.items[item])
            for context, item in zip(contexts.flatten().tolist(), items.flatten().tolist(), strict=True)
        ]
        return torch.tensor(ask_once(self.judge, pairs), dtype=torch.float32).view(items.shape)


def labels_of(options: RelevanceOptions, world: World, descriptions: Descriptions) -> RelevanceOracle:
    """The world's own expected reward as labels."""
    return LabelOracle(world_labels(world, options.relevant_above))


def world_labels(world: World, above: float | None) -> Tensor:
    """The expected reward, capped to [0, 1], or 1 where it is above a bound, (C, N)."""
    reward = world.expected_reward
    return reward.clamp(0, 1) if above is None else (reward > above).float()


def function_of(options: RelevanceOptions, world: World, descriptions: Descriptions) -> RelevanceOracle:
    """A function of the user's own file.

    Raises:
        UsageError: the file cannot be run, or has no such function.
    """
    found = user_function(options.oracle, "oracle")

    def judge(pairs: Sequence[Pair]) -> list[float]:
        return checked(found(pairs), len(pairs), options.oracle)

    return PairOracle(judge, descriptions)


def judge_of(options: RelevanceOptions, world: World, descriptions: Descriptions) -> RelevanceOracle:
    """A judge behind a URL, its answers kept."""
    from esr_trainer.relevance_judge import CachedJudge, HttpJudge, Judge

    judge: Judge
    limits = options.judge_budget, options.judge_attempts, options.judge_seconds, options.judge_token_file
    if options.oracle.startswith(HTTP):
        judge = HttpJudge(options.oracle, *limits)
    else:
        from esr_trainer.relevance_judge_grpc import GrpcJudge

        judge = GrpcJudge(options.oracle, *limits)
    kept = CachedJudge(judge, options.judge_cache, options.judge_batch, options.judge_concurrency)
    return PairOracle(kept, descriptions)


ORACLES: Mapping[str, Callable[[RelevanceOptions, World, Descriptions], RelevanceOracle]] = {
    "labels": labels_of,
    "function": function_of,
    "url": judge_of,
}
"""Kind -> how to open one."""


def kind_of(oracle: str) -> str:
    """The kind of oracle that a name means.

    Raises:
        UsageError: none.
    """
    if oracle == "labels":
        return "labels"
    if oracle.startswith((*HTTP, *GRPC)):
        return "url"
    if Path(oracle.rpartition(":")[0]).suffix == ".py":
        return "function"
    raise UsageError(f"oracle ({oracle}) must be labels, FILE.py:function, or an http, https, grpc or grpcs URL")


def open_oracle(options: RelevanceOptions, world: World, descriptions: Descriptions) -> RelevanceOracle:
    """Open the oracle of the settings.

    Args:
        options: the settings.
        world: whose rows are asked for.
        descriptions: what is told of the rows.

    Raises:
        UsageError: there is no such oracle, or it cannot be opened.
    """
    return ORACLES[kind_of(options.oracle)](options, world, descriptions)
