"""Terms of a log of any length, reduced to what estimates and intervals need.

Kept are, of a candidate's and the baseline's control, numerator and denominator, sums over units and second moments.
Estimates, t and empirical Bernstein come out as of all rounds at once; the bootstrap resamples units. Up to UNITS
rounds each is a unit of its own; of more, every UNITS-th round goes into the same one.

Axes: R rounds, U units, 6 parts (control, numerator, denominator of the candidate, then of the baseline).
"""

import math
from typing import NamedTuple

import numpy as np

from offline_eval.intervals import Sample
from offline_eval.logs.weighed_rounds import Terms

UNITS = 10_000
"""Units of a long log: resampling them gives the spread of the mean to 1/sqrt(2 x 10,000) = 0.7 %."""


class Linear(NamedTuple):
    """A ratio of means to first order: constant + coefficients @ parts, round by round (see `per_round`)."""

    constant: float
    coefficients: np.ndarray
    """(3,)."""


class TermSums:
    """Sums of a candidate's terms and of the baseline's on the same rounds."""

    def __init__(self, num_units: int = UNITS) -> None:
        self.num_rounds = 0
        self._units = np.zeros((num_units, 6))
        self._sizes = np.zeros(num_units)
        self._products = np.zeros((6, 6))
        self._origin = np.zeros(6)  # parts are summed from here: squares far from 0 would lose their digits

    def add(self, terms: Terms, baseline: Terms) -> None:
        """Add rounds, in their order."""
        parts = np.stack([*terms, *baseline], axis=1)
        if not self.num_rounds and len(parts):
            self._origin = parts.mean(axis=0)
        parts -= self._origin
        self._products += parts.T @ parts
        for start in range(0, len(parts), len(self._units)):  # of so many rounds in a row no two share a unit
            some = parts[start : start + len(self._units)]
            units = (self.num_rounds + np.arange(len(some))) % len(self._units)
            self._units[units] += some
            self._sizes[units] += 1
            self.num_rounds += len(some)

    def value(self, spread: float = math.nan) -> Sample:
        """The candidate's value; the spread is of its terms, before they are divided by a denominator's mean."""
        linear = self._linear(0)
        return self._sample(linear.constant, [*linear.coefficients, 0, 0, 0], spread * self._scale(0))

    def difference(self, spread: float = math.nan, baseline_spread: float = math.nan) -> Sample:
        """The candidate's value minus the baseline's."""
        mine, theirs = self._linear(0), self._linear(3)
        coefficients = [*mine.coefficients, *-theirs.coefficients]
        reach = spread * self._scale(0) + baseline_spread * self._scale(3)
        return self._sample(mine.constant - theirs.constant, coefficients, reach)

    def baseline(self, spread: float = math.nan) -> Sample:
        """The baseline's value."""
        linear = self._linear(3)
        return self._sample(linear.constant, [0, 0, 0, *linear.coefficients], spread * self._scale(3))

    def _means(self) -> np.ndarray:
        means: np.ndarray = self._origin + self._units.sum(axis=0) / self.num_rounds
        return means

    def _scale(self, first: int) -> float:
        denominator = float(self._means()[first + 2])
        return 1 / denominator if denominator else math.nan

    def _linear(self, first: int) -> Linear:
        scale, numerator = self._scale(first), float(self._means()[first + 1])
        ratio = numerator * scale
        return Linear(ratio, np.array([1.0, scale, -ratio * scale]))

    def _sample(self, constant: float, coefficients: list[float], spread: float) -> Sample:
        weights, used = np.array(coefficients), self._sizes > 0
        total, sizes = self._units[used].sum(axis=0), self._sizes[used]
        mean = constant + float(self._means()[:3] @ weights[:3]) + float(self._means()[3:] @ weights[3:])
        # a unit's deviation, so scaled that the units' mean is the mean of the rounds however many each holds
        parts = (self._units[used] - np.outer(sizes, total / self.num_rounds)) * weights
        deviations = parts[:, :3].sum(axis=1) + parts[:, 3:].sum(axis=1)  # of a candidate against itself, exactly 0
        values = mean + deviations * (len(sizes) / self.num_rounds)
        centred = self._products - np.outer(total, total) / self.num_rounds
        squares = max(float(weights @ centred @ weights), 0.0)
        variance = squares / (self.num_rounds - 1) if self.num_rounds > 1 else math.nan
        return Sample(values, self.num_rounds, variance, spread)
