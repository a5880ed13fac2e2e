"""Confidence intervals of a mean over contexts."""

from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000
MOST_RESAMPLES = 20_000
"""A higher confidence looks further into the tail and takes more resamples, up to as many."""


class Estimate(NamedTuple):
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: np.ndarray, seed: int = 0, confidence: float = CONFIDENCE) -> Estimate:
    """The mean with its bootstrap interval, bias-corrected and accelerated (Efron 1987; scipy.stats.bootstrap).

    Args:
        values: one per context, (C,); contexts are the unit that is resampled.
        seed: decides the resamples.
        confidence: how often the interval is to hold the true mean.
    """
    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:  # nothing varies: BCa divides by the values' spread
        return Estimate(mean, mean, mean)
    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=min(MOST_RESAMPLES, round(RESAMPLES * (1 - CONFIDENCE) / (1 - confidence))),
        confidence_level=confidence,
        rng=np.random.default_rng(seed),
        batch=256,
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high))
