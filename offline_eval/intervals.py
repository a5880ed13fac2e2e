"""Confidence intervals of a mean over contexts."""

from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000


class Estimate(NamedTuple):
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: np.ndarray, seed: int = 0) -> Estimate:
    """The mean with its 95 % bootstrap interval, bias-corrected and accelerated (Efron 1987; scipy.stats.bootstrap).

    Args:
        values: one per context, (C,); contexts are the unit that is resampled.
        seed: decides the resamples.
    """
    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:  # nothing varies: BCa divides by the values' spread
        return Estimate(mean, mean, mean)
    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        rng=np.random.default_rng(seed),
        batch=256,
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high))
