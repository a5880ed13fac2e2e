"""How far the CA family's inclusion probabilities are from what draws say. Axes: M experts, N items, K candidates."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from esr_trainer.estimators import ESTIMATORS
from esr_trainer.policy import sample_candidates
from esr_trainer.quotas import quotas

NAMES = ("ca-poisson", "ca-heads", "ca")
"""Estimators of the inclusion probability; ca-swr follows an item's share of draws, which is none."""

TEMPERATURES = (1.0, 0.5, 0.2)
EXPERTS = (1, 5)
QUOTAS = (1, 2, 3, 4, 5, 10, 20)
CHUNK = 500


class InclusionError(NamedTuple):
    """One row."""

    temperature: float
    """Logits are N(0, 1 / temperature^2)."""
    num_experts: int
    quota: int
    """K_m, positions of each expert; K = M K_m."""
    errors: dict[str, float]
    """Estimator -> sum_a |pi(a) - pi of the draws| / K."""


def inclusion_errors(num_items: int, draws: int) -> Iterable[InclusionError]:
    """Every temperature, M and K_m, on one context each.

    Args:
        num_items: N.
        draws: candidate sets per row.

    Yields:
        A row as soon as it is worked out.
    """
    for temperature in TEMPERATURES:
        for num_experts in EXPERTS:
            generator = torch.Generator().manual_seed(7)
            logits = torch.randn((1, num_experts, num_items), generator=generator, dtype=torch.float64) / temperature
            for quota in QUOTAS:
                expected = drawn_inclusion(logits, quota * num_experts, draws)
                yield InclusionError(temperature, num_experts, quota, errors_of(logits, quota * num_experts, expected))


def errors_of(logits: Tensor, num_candidates: int, expected: Tensor) -> dict[str, float]:
    """Every estimator's error against the inclusion probabilities of the draws, (N,)."""
    items = torch.arange(logits.shape[2])[None]
    found = {name: ESTIMATORS[name](logits, items, items[:, :num_candidates]).exp()[0] for name in NAMES}
    return {name: float((pi - expected).abs().sum() / num_candidates) for name, pi in found.items()}


def drawn_inclusion(logits: Tensor, num_candidates: int, draws: int) -> Tensor:
    """pi of Gumbel draws, (N,): sum_k of the mean chance to be drawn at position k, given what was drawn before.

    Averaging chances, and not counting who came (Rao-Blackwell), leaves far less noise: none at K = 1.

    Args:
        logits: (1, M, N).
        num_candidates: K.
        draws: candidate sets.
    """
    generator = torch.Generator().manual_seed(8)
    total = torch.zeros(logits.shape[2], dtype=torch.float64)
    sizes = quotas(num_candidates, logits.shape[1])
    for _ in range(draws // CHUNK):
        drawn = iter(sample_candidates(logits.expand(CHUNK, -1, -1), num_candidates, generator).unbind(1))
        left = torch.ones((CHUNK, logits.shape[2]), dtype=torch.float64)
        for expert, size in enumerate(sizes):
            weights = (logits[0, expert].double() - logits[0, expert].max()).exp()
            for _ in range(size):
                total += weights * ((left @ weights).reciprocal() @ left)
                left.scatter_(1, next(drawn)[:, None], 0.0)
    return total / draws
