"""LIST_MEASURES: what can be said of candidate lists without a reward.

Axes: C contexts, N items, K candidates, L slots, J items of the world's or the late-stage ranker's choice.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from esr_trainer.policy_value import CHUNK, System
from esr_trainer.world import World


class Lists(NamedTuple):
    """One policy's candidates, and what they are read against; all int64 rows."""

    candidates: Tensor
    """(C, K), distinct in a row."""
    baseline: Tensor
    """The baseline's candidates, (C, K)."""
    best_of_ranker: Tensor | None
    """The L items that the LSR would show if it ranked the whole catalogue, (C, L); None where it has no order."""
    best_of_world: Tensor
    """The L items of the highest expected reward, (C, L)."""
    num_items: int
    """N."""


def share_found(wanted: Tensor, candidates: Tensor) -> Tensor:
    """|wanted ∩ candidates| / J in every context: (C, J), (C, K) -> (C,)."""
    shares = [
        (some[:, :, None] == among[:, None]).any(dim=2).double().mean(dim=1)
        for some, among in zip(torch.split(wanted, CHUNK), torch.split(candidates, CHUNK), strict=True)
    ]
    return torch.cat(shares)


def recall_of_ranker(lists: Lists) -> float | None:
    """recall@K of the LSR's best: the mean share of `best_of_ranker` that is among the candidates.

    At 1 the ESR costs nothing: the LSR shows what it would show of the whole catalogue.
    """
    best = lists.best_of_ranker
    return None if best is None else float(share_found(best, lists.candidates).mean())


def recall_of_world(lists: Lists) -> float:
    """recall@K of the world's best: the mean share of `best_of_world` that is among the candidates."""
    return float(share_found(lists.best_of_world, lists.candidates).mean())


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


def best_of_ranker(world: World, system: System) -> Tensor | None:
    """The L items that the LSR prefers of the whole catalogue, (C, L); None for the uniform LSR, which prefers none."""
    weight = system.ranker.score_weight
    if not weight:
        return None
    everything = torch.arange(world.num_items)
    best = [
        (weight * system.scores(contexts, everything.expand(len(contexts), -1))).topk(system.num_slots).indices
        for contexts in torch.split(torch.arange(world.num_contexts), CHUNK)
    ]
    return torch.cat(best)


def best_of_world(world: World, system: System) -> Tensor:
    """The L items of the highest expected reward, (C, L)."""
    return world.expected_reward.topk(system.num_slots, dim=1).indices
