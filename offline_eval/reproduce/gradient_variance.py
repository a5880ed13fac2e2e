"""Variance and bias of each estimator's gradient against the exact one, as K grows: Theorem 3.1 made visible.

A world so small that every ordered candidate set can be listed: no number here is drawn. The gradient is that of the
expected reward by one context's logits; a sample is r ∇log P(A) for the V family, r ∇log pi(a) of the shown item a for
the CA family. Theorem 3.1 (arXiv:2605.26385): E[r ∇log P(A)] = E[r ∇log P(a in A)] + E[r ∇log P(A | a in A)].

Axes: S ordered candidate sets, N items, K candidates.
"""

from collections.abc import Iterable, Mapping
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor

from esr_trainer.estimators import ESTIMATORS
from esr_trainer.late_stage_rankers import LATE_STAGE_RANKERS
from esr_trainer.synthetic import synthetic_world
from offline_eval.grids import Grid

NUM_CONTEXTS, NUM_ITEMS = 10, 8
LSRS = ("optimal", "noisy")
OF_THE_SET = ("v", "v-swr")
OF_THE_ITEM = ("ca", "ca-swr", "ca-poisson", "ca-heads")
EXACT, REST = "exact inclusion", "rest"
"""r ∇log P(a in A) with the inclusion probability summed over all sets, and r ∇log P(A | a in A)."""


ZERO = 1e-20
"""Squared length, relative to the exact gradient's, below which a mean is rounding alone."""


class GradientError(NamedTuple):
    """One row: an estimator under an LSR at a K, over all contexts."""

    lsr: str
    num_candidates: int
    estimator: str
    """A name in ESTIMATORS, EXACT or REST."""
    variance: float
    """tr Cov of one sample, over the exact gradient's squared length."""
    bias: float
    """Length of mean minus exact gradient, over the exact one's; REST's is its share of the exact gradient."""
    cosine: float | None
    """Of the angle between the mean and the exact gradient; None for a mean of zero."""


class Moments(NamedTuple):
    """One estimator's in one context."""

    mean: Tensor
    """(N,)."""
    variance: Tensor
    """tr Cov, ()."""


def gradient_errors(most_candidates: int = NUM_ITEMS - 1) -> Iterable[GradientError]:
    """Every LSR, K and estimator.

    Args:
        most_candidates: the largest K, below NUM_ITEMS.

    Yields:
        The rows of a K, those of every estimator at once.
    """
    world = synthetic_world(num_contexts=NUM_CONTEXTS, num_items=NUM_ITEMS)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((NUM_CONTEXTS, NUM_ITEMS), generator=generator, dtype=torch.float64)
    for lsr in LSRS:
        for num_candidates in range(1, most_candidates + 1):
            contexts = [
                moments_of(own, rewards.double(), num_candidates, lsr)
                for own, rewards in zip(logits, world.expected_reward, strict=True)
            ]
            for name in contexts[0]:
                yield error_of(lsr, num_candidates, name, contexts)


def error_of(lsr: str, num_candidates: int, name: str, contexts: list[dict[str, Moments]]) -> GradientError:
    """One estimator's row, from the moments of every context."""
    exact = torch.stack([moments["v"].mean for moments in contexts])
    mean = torch.stack([moments[name].mean for moments in contexts])
    variance = torch.stack([moments[name].variance for moments in contexts]).sum()
    length = exact.square().sum()
    difference = mean if name == REST else mean - exact
    own = mean.square().sum()
    return GradientError(
        lsr,
        num_candidates,
        name,
        variance=float(variance / length),
        bias=float((difference.square().sum() / length).sqrt()),
        cosine=float((mean * exact).sum() / (length * own).sqrt()) if own > ZERO * length else None,
    )


def moments_of(logits: Tensor, rewards: Tensor, num_candidates: int, lsr: str) -> dict[str, Moments]:
    """Mean and variance of every estimator's sample in one context, by listing every set and every shown item.

    Args:
        logits: (N,).
        rewards: expected rewards, (N,), which the LSR ranks by.
        num_candidates: K.
        lsr: a name in LATE_STAGE_RANKERS.
    """
    sets = torch.tensor(list(permutations(range(len(logits)), num_candidates)))  # (S, K)
    chance = ESTIMATORS["v"](logits.expand(len(sets), 1, -1), sets[:, :1], sets)[:, 0].exp()  # (S,)
    ranker = LATE_STAGE_RANKERS[lsr]
    positions = ranker.rank(rewards[sets], 1, torch.Generator().manual_seed(0))
    shown = chance[:, None] * ranker.propensities(rewards[sets], positions)[:, 0]  # P(A) P(a | A), (S, K)
    of_set = {name: set_scores(name, logits, sets)[:, None] for name in OF_THE_SET}  # (S, 1, N)
    of_item = {name: item_scores(name, logits, num_candidates) for name in OF_THE_ITEM}  # (N, N)
    of_item[EXACT] = exact_scores(chance, of_set["v"][:, 0], sets)
    scores = of_set | {name: score[sets] for name, score in of_item.items()}
    scores[REST] = scores["v"] - scores[EXACT]
    return {name: moments(shown, rewards[sets], score) for name, score in scores.items()}


def moments(weight: Tensor, reward: Tensor, score: Tensor) -> Moments:
    """Of reward x score under weights that sum to 1: (S, K), (S, K), (S, 1 or K, N)."""
    mean = torch.einsum("sk,skn->n", weight * reward, score.expand(-1, weight.shape[1], -1))
    second = (weight * reward.square() * score.square().sum(dim=2)).sum()
    return Moments(mean, second - mean.square().sum())


def set_scores(name: str, logits: Tensor, sets: Tensor) -> Tensor:
    """∇log-probability of each set, (S, N)."""
    own = logits.repeat(len(sets), 1, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(ESTIMATORS[name](own, sets[:, :1], sets).sum(), own)
    return gradient[:, 0]


def item_scores(name: str, logits: Tensor, num_candidates: int) -> Tensor:
    """∇log-probability of each item, (N, N): the CA family does not look at who else is a candidate."""
    items = torch.arange(len(logits))[:, None]
    own = logits.repeat(len(items), 1, 1).requires_grad_()
    candidates = items.T[:, :num_candidates].expand(len(items), -1)
    (gradient,) = torch.autograd.grad(ESTIMATORS[name](own, items, candidates).sum(), own)
    return gradient[:, 0]


def exact_scores(chance: Tensor, scores: Tensor, sets: Tensor) -> Tensor:
    """∇log pi of each item, pi summed over the sets that hold it: (S,), (S, N), (S, K) -> (N, N)."""
    holds = torch.zeros_like(scores).scatter_(1, sets, 1.0)
    return (holds.T @ (chance[:, None] * scores)) / (holds.T @ chance)[:, None]


def place_text(row: GradientError) -> str:
    """252 / 2.398 / 0.829."""
    cosine = "" if row.cosine is None else f" / {row.cosine:.3f}"
    return f"{row.variance:#.3g} / {row.bias:.3f}{cosine}" if row.variance > ZERO else "0"


LABELS: Mapping[str, str] = {EXACT: "∇log P(a in A), exactly", REST: "∇log P(A given a in A)"}


def gradient_grid(rows: list[GradientError]) -> Grid:
    """Variance, bias and cosine, a line per LSR and estimator, a column per K."""
    counts = sorted({row.num_candidates for row in rows})
    found = {(row.lsr, row.estimator, row.num_candidates): row for row in rows}
    lines = []
    for lsr, name in dict.fromkeys((row.lsr, row.estimator) for row in rows):
        places = [found[lsr, name, count] for count in counts]
        cells = [place_text(row) for row in places]
        lines.append([lsr, LABELS.get(name, name), *cells])
    caption = (
        f"Variance of one sample / bias / cosine to the exact gradient, the first two relative to it; {NUM_CONTEXTS} "
        f"contexts, {NUM_ITEMS} items, N(0, 1) logits, every candidate set listed. Theorem 3.1: the means of the last "
        "two lines of an LSR sum to v's; the bias of the last is its share of the exact gradient."
    )
    return Grid(
        "Gradient of each estimator against the exact one", ["LSR", "", *(f"K={k}" for k in counts)], lines, caption
    )
