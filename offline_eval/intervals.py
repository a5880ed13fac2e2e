"""Confidence intervals of a mean: one table, from exact for bounded values to good in practice.

Axes: R rounds (or contexts), U units that are resampled, P means at once, S resamples.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from esr_trainer.command_line import UsageError
from offline_eval.logs.log_options import IntervalName

CONFIDENCE = 0.95
RESAMPLES = 2000
MOST_RESAMPLES = 20_000
"""A higher confidence looks further into the tail and takes more resamples, up to as many."""
BATCH = 256
"""Resamples that are held at once."""


class Estimate(NamedTuple):
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float


class Sample(NamedTuple):
    """What an interval is made of; a long log is reduced to it (offline_eval.logs.term_sums)."""

    values: np.ndarray
    """(U,): each a unit's, their mean is the estimate. A unit is a round, or some of a long log's."""
    num_rounds: int
    """R."""
    variance: float
    """Of a round's value, divided by R - 1."""
    spread: float
    """How far two rounds' values can lie apart at most, seen or not; nan where nobody knows."""


def sample_of(values: np.ndarray, spread: float = math.nan) -> Sample:
    """The sample of values that are all at hand: (R,), each its own unit."""
    return Sample(values, len(values), float(values.var(ddof=1)) if len(values) > 1 else math.nan, spread)


def bootstrap(values: np.ndarray, seed: int = 0, confidence: float = CONFIDENCE) -> Estimate:
    """The mean with its bootstrap interval, bias-corrected and accelerated (Efron 1987).

    Args:
        values: one per context, (C,); contexts are the unit that is resampled.
        seed: decides the resamples; those of equally many values are the same, so that differences are paired.
        confidence: how often the interval is to hold the true mean.
    """
    resamples = min(MOST_RESAMPLES, round(RESAMPLES * (1 - CONFIDENCE) / (1 - confidence)))
    return bootstraps(values[:, None], seed, resamples, confidence)[0]


def bootstraps(
    values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> list[Estimate]:
    """`bootstrap` of every column on the same resamples; the numbers are those of `scipy.stats.bootstrap`.

    A resample is how often each unit came, so that the means of all columns are one matrix product; of a mean the
    jackknife's acceleration is sum (x - mean)^3 / (6 (sum (x - mean)^2)^1.5).

    Args:
        values: (U, P).
        seed: decides the resamples.
        resamples: S.
        confidence: how often an interval is to hold the true mean.
    """
    mean = values.mean(axis=0)
    centred = values - mean
    varies = np.ptp(values, axis=0) > 0
    if len(values) < 2 or not varies.any():  # nothing varies: BCa divides by the values' spread
        return [Estimate(value, value, value) for value in mean.tolist()]
    resampled = resampled_means(centred, seed, resamples)  # (S, P)
    below = ((resampled < 0).mean(axis=0) + (resampled <= 0).mean(axis=0)) / 2
    with np.errstate(divide="ignore", invalid="ignore"):  # of the columns that do not vary
        acceleration = (centred**3).sum(axis=0) / (6 * (centred**2).sum(axis=0) ** 1.5)
        bias, tails = special.ndtri(below), special.ndtri([(1 - confidence) / 2, (1 + confidence) / 2])
        shifted = bias[:, None] + tails
        levels = special.ndtr(bias[:, None] + shifted / (1 - acceleration[:, None] * shifted))
    return [
        Estimate(value, *(value + np.quantile(column, level)).tolist()) if moves else Estimate(value, value, value)
        for value, column, level, moves in zip(mean.tolist(), resampled.T, levels, varies, strict=True)
    ]


def resampled_means(values: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Means over units drawn with replacement: (U, P) -> (S, P)."""
    generator, units = np.random.default_rng(seed), len(values)
    means = []
    for start in range(0, resamples, BATCH):
        rows = min(BATCH, resamples - start)
        drawn = generator.integers(0, units, (rows, units)) + units * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units)
        means.append(counts.astype(np.float64) @ values / units)
    return np.concatenate(means)


def bca(sample: Sample, confidence: float = CONFIDENCE) -> Estimate:
    """`bootstrap` of the units. Good at a few hundred units; heavy tails, as of large weights, make it too short.

    Rounds that were put into units at random leave bias correction and acceleration what they are: the skewness of a
    unit's mean is smaller as much as units are fewer.
    """
    return bootstrap(sample.values, confidence=confidence)


def student_t(sample: Sample, confidence: float = CONFIDENCE) -> Estimate:
    """mean +- t_{R-1} sqrt(variance / R): exact for normal values, good for many of any; symmetric."""
    mean, count = float(sample.values.mean()), sample.num_rounds
    if count < 2:
        return Estimate(mean, mean, mean)
    reach = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * math.sqrt(sample.variance / count)
    return Estimate(mean, mean - reach, mean + reach)


def empirical_bernstein(sample: Sample, confidence: float = CONFIDENCE) -> Estimate:
    """mean +- sqrt(2 V ln(4/d) / R) + 7 b ln(4/d) / (3 (R - 1)), d = 1 - confidence, V the variance, b the spread.

    Holds for every distribution of independent rounds whose values lie within b of each other (Maurer & Pontil 2009,
    Theorem 4, on both sides): never too short, often far too long. For importance-weighted rewards b is the clip, or
    the largest possible weight, times the range of the rewards and 0; the largest weight that was seen is no bound.

    Raises:
        UsageError: the spread is not known.
    """
    mean, count = float(sample.values.mean()), sample.num_rounds
    if not math.isfinite(sample.spread):
        raise UsageError(f"interval (empirical-bernstein) needs a bound of a round's value; it is {sample.spread}")
    if count < 2:
        return Estimate(mean, mean - sample.spread, mean + sample.spread)
    log_term = math.log(4 / (1 - confidence))
    reach = math.sqrt(2 * sample.variance * log_term / count) + 7 * sample.spread * log_term / (3 * (count - 1))
    return Estimate(mean, mean - reach, mean + reach)


Interval = Callable[[Sample, float], Estimate]
"""(sample, confidence) -> its mean with an interval."""

INTERVALS: Mapping[IntervalName, Interval] = {"bca": bca, "t": student_t, "empirical-bernstein": empirical_bernstein}
"""Name -> interval of a sample's mean."""
