"""What off-policy estimators read, logged rounds weighed for a target policy, and what they give.

Axes: R rounds, L slots. x context, a item, A candidates in their order; e target policy, b the one that logged.
"""

from typing import Literal, NamedTuple

import numpy as np


class WeighedRounds(NamedTuple):
    """Logged rounds as a target policy meets them; None is what the log, or the policy, does not tell."""

    rewards: np.ndarray
    """(R, L), each times its slot's weight; 0 in a slot that was not filled."""
    shown: np.ndarray
    """(R, L) bool: the slots that were filled."""
    log_ratios: np.ndarray | None = None
    """log pi_e(a_l | x, a_<l) - log pi_b(a_l | x, a_<l), (R, L), -inf where e never shows it; 0 in an empty slot."""
    log_marginal_ratios: np.ndarray | None = None
    """The same of the slot alone, whatever the others hold: log pi_e(a_l | x) - log pi_b(a_l | x), (R, L)."""
    log_inclusion_ratios: np.ndarray | None = None
    """log pi_e(a_l in A | x) - log pi_b(a_l in A | x), (R, L)."""
    log_set_ratios: np.ndarray | None = None
    """log P_e(A | x) - log P_b(A | x) of the ordered candidates, (R,)."""
    agrees: np.ndarray | None = None
    """(R,) bool: e without noise does what was logged."""
    predicted: np.ndarray | None = None
    """A reward model's sum over the shown items, (R,); it must not have been fitted to the round itself."""
    predicted_value: np.ndarray | None = None
    """Its expectation under e, (R,): sum_a pi_e(a | x) q(x, a)."""


Weight = Literal["log_ratios", "log_marginal_ratios", "log_inclusion_ratios", "log_set_ratios"]
"""The field of WeighedRounds that an estimator's weights come from."""


def given(values: np.ndarray | None) -> np.ndarray:
    """A field that `NEEDS` has promised."""
    assert values is not None
    return values


def weight_of(rounds: WeighedRounds, weight: Weight) -> np.ndarray:
    """One weight per round, (R,), of mean 1 where every assumption holds: a slate's product, the mean over its slots.

    Diagnostics look at this; an estimator that weighs slot by slot reads the field itself.
    """
    ratios = given(getattr(rounds, weight))
    if weight in ("log_ratios", "log_set_ratios"):
        product: np.ndarray = np.exp(ratios.sum(axis=1) if ratios.ndim == 2 else ratios)
        return product
    slots = np.maximum(rounds.shown.sum(axis=1), 1)
    mean: np.ndarray = np.where(rounds.shown, np.exp(ratios), 0.0).sum(axis=1) / slots
    return mean


class Terms(NamedTuple):
    """mean(control) + mean(numerator) / mean(denominator)."""

    control: np.ndarray
    """(R,)."""
    numerator: np.ndarray
    """(R,)."""
    denominator: np.ndarray
    """(R,), at least 0; 1 where nothing is normalised."""


def per_round(terms: Terms) -> np.ndarray:
    """Per-round estimates, (R,): their mean is the estimate, and their variance over R that of the estimate.

    control + phi + (numerator - phi denominator) / mean(denominator), phi = mean(numerator) / mean(denominator): the
    ratio to first order (delta method, e.g. Owen 2013, Monte Carlo theory, 2.12). Of a plain mean, the terms
    themselves. Where every denominator is 0 nothing is known: nan.
    """
    scale = terms.denominator.mean()
    if scale == 0:
        return np.full_like(terms.numerator, np.nan)
    ratio = terms.numerator.mean() / scale
    estimates: np.ndarray = terms.control + ratio + (terms.numerator - ratio * terms.denominator) / scale
    return estimates
