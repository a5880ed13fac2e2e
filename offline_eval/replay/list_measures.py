"""LIST_MEASURES: what can be said of candidate lists without a reward.

Axes: C contexts, N items, K candidates, L slots, J items of a list.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from esr_trainer.policy_value import CHUNK, System
from esr_trainer.world import World


class Best(NamedTuple):
    """The L best items of the whole catalogue in every context, by some score; ties at the end are as good."""

    scores: Tensor
    """(C, N)."""
    least: Tensor
    """The L-th best score, (C, 1)."""
    above: Tensor
    """How many items score more than that, (C,), below L."""
    num_slots: int
    """L."""


class Lists(NamedTuple):
    """One policy's candidates, and what they are read against; rows of items, int64."""

    candidates: Tensor
    """(C, K), distinct in a row."""
    baseline: Tensor
    """The baseline's candidates, (C, K)."""
    by_ranker: Best | None
    """What the LSR would show if it ranked the whole catalogue; None where it has no order."""
    by_world: Best
    """The items of the highest expected reward."""
    num_items: int
    """N."""


def best(scores: Tensor, num_slots: int) -> Best:
    """The L best by scores, (C, N)."""
    least = scores.topk(num_slots, dim=1).values[:, -1:]
    return Best(scores, least, (scores > least).sum(dim=1), num_slots)


def recall(best: Best, candidates: Tensor) -> float:
    """The mean share of the L best that is among the candidates, (C, K); of items that tie, any will do.

    (|{a in A : s(a) > s_(L)}| + min(|{a in A : s(a) = s_(L)}|, L - |{a : s(a) > s_(L)}|)) / L, s_(L) the L-th best.
    """
    scores = best.scores.gather(1, candidates)
    tied = (scores == best.least).sum(dim=1).minimum(best.num_slots - best.above)
    found = (scores > best.least).sum(dim=1) + tied
    return float(found.double().mean() / best.num_slots)


def share_found(wanted: Tensor, candidates: Tensor) -> Tensor:
    """|wanted ∩ candidates| / J in every context: (C, J), (C, K) -> (C,)."""
    shares = [
        (some[:, :, None] == among[:, None]).any(dim=2).double().mean(dim=1)
        for some, among in zip(torch.split(wanted, CHUNK), torch.split(candidates, CHUNK), strict=True)
    ]
    return torch.cat(shares)


def recall_of_ranker(lists: Lists) -> float | None:
    """recall@K of the LSR's best items; at 1 the ESR costs nothing: what is shown is what the LSR would show of all."""
    return None if lists.by_ranker is None else recall(lists.by_ranker, lists.candidates)


def recall_of_world(lists: Lists) -> float:
    """recall@K of the world's best items."""
    return recall(lists.by_world, lists.candidates)


def exposures(lists: Lists) -> Tensor:
    """In how many contexts each item is a candidate, (N,) float64."""
    return lists.candidates.flatten().bincount(minlength=lists.num_items).double()


def coverage(lists: Lists) -> float:
    """|{a : a is a candidate in some context}| / N."""
    return float((exposures(lists) > 0).double().mean())


def gini(lists: Lists) -> float:
    """Gini coefficient of the exposures e_(1) <= ... <= e_(N): sum_i (2 i - N - 1) e_(i) / (N sum_i e_(i)).

    0: every item is a candidate equally often; 1 - K / N: the same K items for everybody.
    """
    sorted_exposures, num_items = exposures(lists).sort().values, lists.num_items
    weights = 2 * torch.arange(1, num_items + 1, dtype=torch.float64) - num_items - 1
    return float(weights @ sorted_exposures / (num_items * sorted_exposures.sum()))


def novelty(lists: Lists) -> float:
    """The mean share of candidates that are not among the baseline's: 1 - |A ∩ A_baseline| / K."""
    return 1 - float(share_found(lists.candidates, lists.baseline).mean())


LIST_MEASURES: Mapping[str, Callable[[Lists], float | None]] = {
    "recall_of_ranker": recall_of_ranker,
    "recall_of_world": recall_of_world,
    "coverage": coverage,
    "gini": gini,
    "novelty": novelty,
}
"""Name -> measure; None where it has no meaning."""


def measure(lists: Lists) -> dict[str, float | None]:
    """Every measure by name."""
    return {name: of(lists) for name, of in LIST_MEASURES.items()}


def best_of_ranker(world: World, system: System) -> Best | None:
    """The L items that the LSR prefers of the whole catalogue; None for the uniform LSR, which prefers none."""
    weight = system.ranker.score_weight
    if not weight:
        return None
    everything = torch.arange(world.num_items)
    scores = [
        weight * system.scores(contexts, everything.expand(len(contexts), -1))
        for contexts in torch.split(torch.arange(world.num_contexts), CHUNK)
    ]
    return best(torch.cat(scores), system.num_slots)


def best_of_world(world: World, system: System) -> Best:
    """The L items of the highest expected reward."""
    return best(world.expected_reward, system.num_slots)
