"""Error of the off-policy estimators where the true value is known: bias, coverage of intervals, regret of a choice.

All estimators are judged on the same logs (paired seeds). Axes: S simulated logs, R rounds of each.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from offline_eval.intervals import CONFIDENCE, INTERVALS, Estimate, bootstraps, sample_of
from offline_eval.logs.diagnostics import Running, overlap
from offline_eval.logs.log_options import IntervalName
from offline_eval.logs.ope_estimators import OPE_ESTIMATORS, Limits, OpeEstimatorName
from offline_eval.logs.ope_worlds import FAMILIES, POLICIES, Arena, LogSize
from offline_eval.logs.weighed_rounds import Terms, WeighedRounds, per_round, weight_of

LOGS = 500
"""S."""
ROUNDS = 1000
"""R."""
JUDGED = 5
"""The policy, of the ten, whose value's errors and intervals are looked at."""
RESAMPLES = 1000
REGRET_LOGS = 100
"""Logs from which the best of the ten is chosen."""

ESTIMATED: Mapping[str, tuple[OpeEstimatorName, ...]] = {
    "items": ("dm", "ips", "clipped-ips", "snips", "dr", "sndr", "switch-dr", "dros"),
    "slates": ("sips", "rips", "iips", "pseudo-inverse"),
    "two-stage, uniform LSR": (
        "inclusion",
        "clipped-inclusion",
        "sn-inclusion",
        "candidate-set",
        "sn-candidate-set",
    ),
    **dict.fromkeys(
        ("two-stage, noisy LSR", "two-stage, optimal LSR"),
        ("sn-iips", "iips", "inclusion", "clipped-inclusion", "sn-inclusion", "candidate-set", "sn-candidate-set"),
    ),
}
"""Kind of log -> estimators."""


class OpeError(NamedTuple):
    """What one estimator makes of one kind of log in one world."""

    world: str
    family: str
    estimator: OpeEstimatorName
    true_value: float
    bias: float
    """Mean estimate less the true value."""
    root_mean_squared_error: float
    effective_sample_size: float | None
    """Of all logs' rounds, per log; None without weights."""
    coverage: Mapping[IntervalName, float]
    """Share of the logs whose 95 % interval holds the true value; empirical Bernstein with the true bounds."""
    width: Mapping[IntervalName, float]
    """Mean width of the intervals."""
    regret: float
    """True value of the best of the ten less that of the one that the log would choose, mean over logs."""
    regret_error: float
    """Its standard error."""
    random_regret: float
    """Of a choice at random."""


def ope_errors(world: str, arena: Arena, family: str, logs: int = LOGS, rounds: int = ROUNDS) -> Iterator[OpeError]:
    """Simulate logs of one kind and judge every estimator of it on the same ones.

    Args:
        world: what the world is called.
        arena: the world and its policies.
        family: a key of FAMILIES.
        logs: S.
        rounds: R.
    """
    kind = FAMILIES[family]
    values = np.array([kind.value(arena, target) for target in arena.targets])
    drawn = kind.draw(arena, arena.logging, LogSize(logs, rounds), 1)
    weighed = kind.weigh(arena, arena.targets[JUDGED], drawn)
    chosen = choices(arena, family, min(logs, REGRET_LOGS), rounds)
    for name in ESTIMATED[family]:
        estimates = per_log(OPE_ESTIMATORS[name].terms(weighed, Limits()), logs)  # (S, R)
        spread = largest_spread(weighed, name)
        intervals = {interval: intervals_of(estimates, interval, spread) for interval in INTERVALS}
        missed = values.max() - values[chosen[name]]
        yield OpeError(
            world=world,
            family=family,
            estimator=name,
            true_value=float(values[JUDGED]),
            bias=float(estimates.mean() - values[JUDGED]),
            root_mean_squared_error=float(np.sqrt(((estimates.mean(axis=1) - values[JUDGED]) ** 2).mean())),
            effective_sample_size=sample_size(weighed, name, logs),
            coverage={interval: held(found, values[JUDGED]) for interval, found in intervals.items() if found},
            width={interval: mean_width(found) for interval, found in intervals.items() if found},
            regret=float(missed.mean()),
            regret_error=float(missed.std(ddof=1) / math.sqrt(len(missed))),
            random_regret=float(values.max() - values.mean()),
        )


def largest_spread(weighed: WeighedRounds, name: OpeEstimatorName) -> float:
    """How far two rounds' terms can lie apart: from the largest weight and the range of the rewards in all logs."""
    estimator, rewards = OPE_ESTIMATORS[name], weighed.rewards.sum(axis=1)
    largest = math.nan
    if estimator.weight is not None:
        ratios = getattr(weighed, estimator.weight)
        largest = float(np.exp(ratios.cumsum(axis=1) if estimator.weight == "log_ratios" else ratios).max())
    span = max(float(rewards.max()), 0.0) - min(float(rewards.min()), 0.0)
    return span * estimator.reach(Limits(), largest)


def sample_size(weighed: WeighedRounds, name: OpeEstimatorName, logs: int) -> float | None:
    """The effective sample size of a log, from the weights of all."""
    weight = OPE_ESTIMATORS[name].weight
    if weight is None:
        return None
    running = Running()
    running.add(weight_of(weighed, weight))
    return overlap(weight, running).effective_sample_size / logs


def per_log(terms: Terms, logs: int) -> np.ndarray:
    """Per-round estimates of each log by itself: (S * R,) -> (S, R)."""
    parts = [part.reshape(logs, -1) for part in terms]
    return np.stack([per_round(Terms(*rows)) for rows in zip(*parts, strict=True)])


def intervals_of(estimates: np.ndarray, interval: IntervalName, spread: float) -> list[Estimate]:
    """An interval for each log, (S, R); none where a bound is needed and not known."""
    if interval == "bca":
        return bootstraps(estimates.T, resamples=RESAMPLES)
    if interval == "empirical-bernstein" and math.isnan(spread):
        return []
    return [INTERVALS[interval](sample_of(values, spread), CONFIDENCE) for values in estimates]


def held(intervals: list[Estimate], value: float) -> float:
    """The share of intervals that hold the value."""
    return float(np.mean([interval.low <= value <= interval.high for interval in intervals]))


def mean_width(intervals: list[Estimate]) -> float:
    """Mean of high - low."""
    return float(np.mean([interval.high - interval.low for interval in intervals]))


def choices(arena: Arena, family: str, logs: int, rounds: int) -> Mapping[OpeEstimatorName, np.ndarray]:
    """By estimator, the policy that each log's estimates are highest for, (S,)."""
    kind, names = FAMILIES[family], ESTIMATED[family]
    drawn = kind.draw(arena, arena.logging, LogSize(logs, rounds), 2)
    estimates = np.empty((len(names), POLICIES, logs))
    for policy, target in enumerate(arena.targets):
        weighed = kind.weigh(arena, target, drawn)
        for row, name in enumerate(names):
            estimates[row, policy] = per_log(OPE_ESTIMATORS[name].terms(weighed, Limits()), logs).mean(axis=1)
    return dict(zip(names, estimates.argmax(axis=1), strict=True))
