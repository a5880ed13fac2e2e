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


class PaperError(NamedTuple):
    """A column of table 5."""

    temperature: float
    num_candidates: int
    gap: float
    """Mean logit of the top K less the mean logit of all."""
    of_sets: dict[str, float]
    """Estimator -> sum_a |pi(a) - pi of the draws| / K."""
    of_best: dict[str, float]
    """Estimator -> |pi - pi of the draws| / pi of the draws of the item of the highest logit."""


PAPER_NAMES = ("ca", "ca-swr", "ca-poisson", "ca-heads")
MOSTLY = 0.5
PAPER_ITEMS = 3327
PAPER_CANDIDATES = (5, 25, 100, 250)
"""K is not legible in the source; with as many N(0, 1) logits these K have its mean logit gaps, 3.20 to 1.89."""


def paper_errors(draws: int, num_items: int = PAPER_ITEMS) -> Iterable[PaperError]:
    """Table 5: temperature falls from group to group, K grows within each; one expert, one context.

    Args:
        draws: candidate sets per row, in whole chunks of CHUNK.
        num_items: N.

    Yields:
        A row as soon as it is worked out. `ca-swr` follows an item's share of the draws, so its error is K times that
        share's, held to 1.
    """
    for temperature in TEMPERATURES:
        generator = torch.Generator().manual_seed(7)
        logits = torch.randn((1, 1, num_items), generator=generator, dtype=torch.float64) / temperature
        for num_candidates in PAPER_CANDIDATES:
            expected = drawn_inclusion(logits, num_candidates, draws)
            found = paper_probabilities(logits, num_candidates)
            best = logits[0, 0].argmax()
            of_best = best_of_draws(logits, num_candidates, draws, expected[best])
            yield PaperError(
                temperature,
                num_candidates,
                float(logits[0, 0].topk(num_candidates).values.mean() - logits.mean()),
                {name: float((pi - expected).abs().sum() / num_candidates) for name, pi in found.items()},
                {name: float((pi[best] - of_best).abs() / of_best) for name, pi in found.items()},
            )


def best_of_draws(logits: Tensor, num_candidates: int, draws: int, expected: Tensor) -> Tensor:
    """pi of the best item: how often it came, where it mostly does; else the mean chance, which then has less noise.

    The chances of an item that is sure to come do not sum to 1 in every draw; that it came is certain.

    Args:
        logits: (1, 1, N).
        num_candidates: K.
        draws: candidate sets.
        expected: the sum of mean chances, (), from `drawn_inclusion`.
    """
    if expected < MOSTLY:
        return expected
    generator, best = torch.Generator().manual_seed(8), logits[0, 0].argmax()
    chunks = (sample_candidates(logits.expand(CHUNK, -1, -1), num_candidates, generator) for _ in range(draws // CHUNK))
    came = sum((candidates == best).sum() for candidates in chunks)
    return torch.as_tensor(came / draws)


def paper_probabilities(logits: Tensor, num_candidates: int) -> dict[str, Tensor]:
    """Every estimator's inclusion probabilities, (N,): (1, 1, N) logits."""
    items = torch.arange(logits.shape[2])[None]
    found = {name: ESTIMATORS[name](logits, items, items[:, :num_candidates]).exp()[0] for name in PAPER_NAMES}
    return found | {"ca-swr": (num_candidates * found["ca-swr"]).clamp(max=1)}


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
