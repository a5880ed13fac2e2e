"""Inclusion probabilities in closed form, in NumPy and float64: the twin of `esr_trainer.inclusion` (ca-poisson).

Axes: M experts, N items that may be drawn.
"""

import math
from collections.abc import Callable

import numpy as np

from esr_trainer.quotas import quotas

LARGEST_EXPONENT = 690.0
"""e^690 is finite in float64; an item whose exposure is larger has arrived."""
FLAT = 1e-5
"""Where d(arrivals) / d(log tau), per arrival, is less, the sum of arrivals does not tell log tau."""


def poisson_inclusion(logits: np.ndarray, num_candidates: int) -> np.ndarray:
    """pi(a) = 1 - exp(-sum_m e^(f^m(a) + log tau_m)), the closed form of ca-poisson.

    Args:
        logits: (M, N) float64, finite.
        num_candidates: K, at most N.

    Returns:
        (N,), which sums to K.
    """
    num_items = logits.shape[1]
    if num_candidates == num_items:
        return np.ones(num_items)
    exposure = None  # Z_m, over the races so far
    taken = 0
    for rates, size in zip(logits, quotas(num_candidates, len(logits)), strict=True):
        if size:
            time = log_stopping_time(rates, exposure, taken, size)
            arrivals = exponential(rates + time)
            exposure = arrivals if exposure is None else exposure + arrivals
            taken += size
    assert exposure is not None
    arrival: np.ndarray = -np.expm1(-exposure)
    return arrival


def log_sum_exp(values: np.ndarray) -> float:
    """log sum e^x, -inf of nothing; numpy's logaddexp.reduce takes five times as long."""
    largest = float(values.max(initial=-math.inf))
    if not math.isfinite(largest):
        return largest
    return largest + math.log(float(np.exp(values - largest).sum()))


def exponential(exponent: np.ndarray) -> np.ndarray:
    """e^x, held to what is finite."""
    result: np.ndarray = np.exp(np.minimum(exponent, LARGEST_EXPONENT))
    return result


def log_stopping_time(rates: np.ndarray, exposure: np.ndarray | None, taken: int, size: int) -> float:
    """log tau of one race: sum_a e^-Z(a) (1 - e^-z(a)) = size, z = e^(rates + log tau).

    Newton on the logarithm of both sides, kept inside a bracket. Where the sum is flat, as between items that are sure
    to be in and items that are sure not to, `balance` tells.

    Args:
        rates: f, (N,).
        exposure: Z before this race, (N,), or None.
        taken: expected arrivals before this race.
        size: expected arrivals in this race, fewer than N - taken.
    """
    weights = rates if exposure is None else rates - exposure
    low = math.log(size) - log_sum_exp(weights) - 1e-3  # since 1 - e^-z <= z
    high = math.log(math.log(len(rates)) + 40) - float(rates.min())  # everything has arrived
    time = low
    for _ in range(200):
        arrivals = exponential(rates + time)
        left = np.exp(-(arrivals if exposure is None else arrivals + exposure))
        arrived = len(rates) - taken - float(left.sum())
        slope = float(arrivals @ left)
        excess = math.log(max(arrived, 1e-300) / size)
        if abs(excess) < 0.5 and slope < FLAT * size:
            return solve_flat(rates, exposure, taken, size)
        low, high = (time, high) if excess <= 0 else (low, time)
        newton = time - excess * max(arrived, 1e-300) / slope if slope > 0 else math.inf
        following = newton if low <= newton <= high else (low + high) / 2
        if abs(following - time) <= 1e-13 * (1 + abs(time)) or high - low <= 1e-13 * (1 + abs(time)):
            return following
        time = following
    return time


LogChances = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""log z (N,) -> log p and log(1 - p), (N,) each."""


def solve_flat(rates: np.ndarray, exposure: np.ndarray | None, taken: int, size: int) -> float:
    """log tau where plain sums cannot tell it: those in front that are left balance those behind that came.

    Two forms, of this race's arrivals or of all races' so far; whichever balances less loses nothing
    (esr_trainer.sharp_races.solve_flat).
    """

    def so_far(log_z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        exposed = log_z if exposure is None else np.logaddexp(log_of(exposure), log_z)
        return log_arrival(exposed), -exponential(exposed)

    def in_this_race(log_z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert exposure is not None
        came = log_arrival(log_z) - exposure
        return came, np.logaddexp(log_arrival(log_of(exposure)), -exposure - exponential(log_z))

    if exposure is None:
        return balance(so_far, rates, size)[0]
    return min(balance(so_far, rates, taken + size), balance(in_this_race, rates, size), key=lambda found: found[1])[0]


def balance(chances: LogChances, rates: np.ndarray, size: int) -> tuple[float, float]:
    """Bisect log tau until the items behind the first `size` came as much as those in front are left.

    Returns:
        log tau, and the logarithm of what balances.
    """
    low, high = -log_sum_exp(rates) - 1e-3, 100 - float(rates.min())
    left = 0.0
    for _ in range(100):
        time = (low + high) / 2
        log_came, log_left = chances(rates + time)
        order = np.argpartition(-log_came, size - 1)
        front, behind = order[:size], order[size:]
        left, came = log_sum_exp(log_left[front]), log_sum_exp(log_came[behind])
        low, high = (time, high) if left > came else (low, time)
        if high - low <= 1e-13 * (1 + abs(time)):
            break
    return (low + high) / 2, left


def log_arrival(log_exposure: np.ndarray) -> np.ndarray:
    """log(1 - e^-z) from log z, for any z."""
    exposure = exponential(log_exposure)
    small = log_exposure - exposure / 2
    with np.errstate(divide="ignore"):  # of the form that is not taken
        middle, large = np.log(-np.expm1(-exposure)), np.log1p(-np.exp(-exposure))
    return np.where(exposure < 1e-6, small, np.where(exposure < 1, middle, large))


def log_of(exposure: np.ndarray) -> np.ndarray:
    """log z, -inf where an item never came near."""
    with np.errstate(divide="ignore"):
        result: np.ndarray = np.log(exposure)
    return result
