"""Whether a log can tell the value of a candidate: overlap of the policies, calibration of the propensities.

Axes: R rounds, K candidates, N items.
"""

import math
from typing import NamedTuple

import numpy as np

from offline_eval.intervals import Estimate, Sample, student_t
from offline_eval.logs.weighed_rounds import Weight
from offline_eval.verdict import Gate

LEAST_SAMPLE = 400.0
"""Least effective sample size on which a promotion may rest: of simulated logs, BCa's 95 % intervals of unbiased
estimators held the true value in 86 % to 92 % at 134 to 167, 92 % and 94 % at 396, 94 % to 97 % above (ope.json)."""
LARGEST_SHARE = 0.1
"""Largest share of all weight that one round may have."""
LEAST_SUPPORT = 0.95
"""Least share of rounds that the candidate may have shown."""
TOLERATED = 0.05
"""How far a mean that should be 1 (or N, in units of N) may lie from its interval: the inclusion
probabilities are themselves off by about a percent where K is 9 or more, and weights by more where the LSR picks."""


class Running:
    """Mean, variance and largest value of numbers that come some at a time."""

    def __init__(self) -> None:
        self.count, self.positive, self.largest = 0, 0, -math.inf
        self._mean = self._squares = 0.0

    def add(self, values: np.ndarray) -> None:
        """Add some (Chan et al. 1979: nothing is subtracted that could cancel)."""
        if not len(values):
            return
        mean, count = float(values.mean()), self.count + len(values)
        step = mean - self._mean
        self._squares += float(((values - mean) ** 2).sum()) + step**2 * self.count * len(values) / count
        self._mean += step * len(values) / count
        self.count = count
        self.positive += int((values > 0).sum())
        self.largest = max(self.largest, float(values.max()))

    @property
    def mean(self) -> float:
        """Of all so far."""
        return self._mean

    @property
    def sum_of_squares(self) -> float:
        """Sum of x^2."""
        return self._squares + self.count * self._mean**2

    def interval(self) -> Estimate:
        """The mean with its 95 % t interval."""
        variance = self._squares / (self.count - 1) if self.count > 1 else math.nan
        return student_t(Sample(np.array([self._mean]), self.count, variance, math.nan))


class Overlap(NamedTuple):
    """How much of a log speaks of a candidate."""

    weight: Weight
    """Which weights these are of."""
    num_rounds: int
    """R."""
    effective_sample_size: float
    """(sum w)^2 / sum w^2 (Kong 1992): as many rounds of the candidate's own would tell as much."""
    largest_weight: float
    largest_share: float
    """Of the largest weight in the sum of all."""
    supported_share: float
    """Of the rounds that the candidate may have shown: w > 0."""
    mean_weight: Estimate
    """1 within its interval where the propensities are right, b may do all that e does, and, of inclusion weights, the
    LSR shows a candidate alike under both."""


class Decile(NamedTuple):
    """A tenth of all (round, item) pairs, by falling inclusion probability."""

    predicted: float
    """Mean inclusion probability."""
    observed: float
    """Share of the pairs whose item was a candidate."""
    num_pairs: int


class Calibration(NamedTuple):
    """Whether logged inclusion propensities are those of the draws: E[sum over candidates of 1 / pi] = N."""

    num_items: int
    """N, of the catalogue that was drawn from."""
    mean_inverse_sum: Estimate
    """Over rounds, with its t interval."""
    deciles: tuple[Decile, ...]
    """Of the log's first rounds; none unless the baseline is the policy that logged."""


def overlap(weight: Weight, weights: Running) -> Overlap:
    """The overlap of weights that were added up, one per round."""
    total = weights.count * weights.mean
    return Overlap(
        weight=weight,
        num_rounds=weights.count,
        effective_sample_size=total**2 / weights.sum_of_squares if weights.sum_of_squares else 0.0,
        largest_weight=weights.largest,
        largest_share=weights.largest / total if total else 1.0,
        supported_share=weights.positive / weights.count,
        mean_weight=weights.interval(),
    )


def inverse_sums(inclusion: np.ndarray) -> np.ndarray:
    """sum over candidates of 1 / pi, round by round: (R, K), nan beyond a round's own K -> (R,)."""
    sums: np.ndarray = np.nansum(1 / inclusion, axis=1)
    return sums


def inclusion_deciles(inclusion: np.ndarray, is_candidate: np.ndarray) -> list[Decile]:
    """Inclusion probabilities against how often it happened, by decile of the probabilities.

    Args:
        inclusion: pi of every item in every round, (R, N).
        is_candidate: (R, N) bool.

    Returns:
        Ten, the largest probabilities first.
    """
    order = np.argsort(-inclusion, axis=None, kind="stable")
    predicted, observed = inclusion.ravel()[order], is_candidate.ravel()[order]
    return [
        Decile(float(predicted[part].mean()), float(observed[part].mean()), len(part))
        for part in np.array_split(np.arange(len(order)), 10)
        if len(part)
    ]


def gates(found: Overlap, calibration: Calibration | None) -> tuple[Gate, ...]:
    """What must hold for an estimate from the log to carry a decision; where it does not, too little is known: hold."""
    gates = [
        at_least("effective sample size", found.effective_sample_size, LEAST_SAMPLE),
        at_most("largest weight's share", found.largest_share, LARGEST_SHARE),
        at_least("share of rounds with support", found.supported_share, LEAST_SUPPORT),
        at_most("distance of 1 from the mean weight's interval", outside(found.mean_weight, 1.0), TOLERATED),
    ]
    if calibration is not None:
        off = outside(calibration.mean_inverse_sum, calibration.num_items) / calibration.num_items
        gates.append(at_most("distance of N from the interval of sum 1/propensity, over N", off, TOLERATED))
    return tuple(gates)


def outside(interval: Estimate, value: float) -> float:
    """How far a value lies from an interval, 0 inside."""
    return max(interval.low - value, value - interval.high, 0.0)


def at_least(name: str, value: float, bound: float) -> Gate:
    """A gate from below."""
    return Gate(name, value, f">= {bound:g}", value >= bound, "hold")


def at_most(name: str, value: float, bound: float) -> Gate:
    """A gate from above."""
    return Gate(name, value, f"<= {bound:g}", value <= bound, "hold")
