"""Inclusion probabilities draw by draw, for one context, in NumPy and float64.

The twin of `esr_trainer.drawn_inclusion` and `esr_trainer.head_inclusion`, where the formulas stand.

Axes: M experts, N items that may be drawn, J heads, S sets of heads that are gone (bit j: head j is).
"""

from functools import cache
from typing import NamedTuple

import numpy as np

from esr_trainer.quotas import ROUNDING, WIDEST, quotas
from serving.poisson_inclusion import log_sum_exp


class State(NamedTuple):
    """What is left between two draws."""

    left: np.ndarray
    """u, (N,)."""
    taken: np.ndarray
    """1 - u before this expert, (N,)."""
    heads: np.ndarray
    """Items, (J,)."""
    chances: np.ndarray
    """p of every set of heads that may be gone, (S,)."""


def first_two_draws(logits: np.ndarray, num_candidates: int) -> np.ndarray:
    """pi of one draw or two, whatever their experts; exact.

    Args:
        logits: (M, N) float64.
        num_candidates: K, 1 or 2.

    Returns:
        (N,).
    """
    first = logits[0] - log_sum_exp(logits[0])
    if num_candidates == 1:
        softmax: np.ndarray = np.exp(first)
        return softmax
    rates = logits[min(1, len(logits) - 1)]
    second = rates - log_sum_exp(rates)
    ratios = first - log_sum_exp_without(second)  # log p_1(b) / (1 - p_2(b))
    pi: np.ndarray = np.minimum(np.exp(np.logaddexp(first, second + log_sum_exp_without(ratios))), 1)
    return pi


def log_sum_exp_without(values: np.ndarray) -> np.ndarray:
    """log of the sum of e^x over all others, for each: (N,) -> (N,), N at least 2."""
    share = np.exp(values - log_sum_exp(values))
    largest = int(values.argmax())
    share[largest] = 0.0  # nothing else is more than half: only there could the difference cancel
    result = log_sum_exp(values) + np.log1p(-share)
    result[largest] = log_sum_exp(np.delete(values, largest))
    return result


def head_inclusion(logits: np.ndarray, num_candidates: int, num_heads: int) -> np.ndarray | None:
    """pi by following the heaviest items exactly and the others by their chance to be left.

    Args:
        logits: (M, N) float64.
        num_candidates: K, less than N.
        num_heads: J, at most N.

    Returns:
        (N,), or None where the logits lie too far apart, or too few items are left.
    """
    if (np.ptp(logits, axis=1) >= WIDEST).any():
        return None
    num_items = logits.shape[1]
    state = State(np.ones(num_items), np.zeros(num_items), np.arange(num_heads), np.eye(1, 1 << num_heads)[0])
    for rates, size in zip(logits, quotas(num_candidates, len(logits)), strict=True):
        if size:
            weights = np.exp(rates - rates.max())
            state = draws(weights, choose_heads(weights, state), size)
    pi = state.taken
    if abs(pi.sum() / num_candidates - 1) > ROUNDING or pi.max() > 1 + ROUNDING:
        return None
    result: np.ndarray = np.minimum(pi, 1)
    return result


def draws(weights: np.ndarray, state: State, size: int) -> State:
    """What is left after one expert's draws, of weights w (N,)."""
    left, taken, heads, chances = state
    here = is_here(len(heads))
    heavy, light = weights[heads], weights.copy()
    light[heads] = 0.0
    heavy_left = here @ heavy
    gain, head_gain = np.zeros_like(weights), np.zeros_like(heavy)  # sums over the draws of d / w
    for _ in range(size):
        rest = float(light @ left)
        total = heavy_left + rest
        pace = chances / np.where(total > 0, total, 1.0)  # N = J: nothing is left in the set of all, p = 0
        mean = float(pace.sum())
        draw = left / (1 + mean * (light - light * left))
        drawn = float(light @ draw)
        draw *= rest * mean / drawn if drawn > 0 else 0.0
        left = left - light * draw
        gain += draw
        head_gain += pace @ here
        chances = pace * rest + head_draw(pace, heavy)
    gain[heads] = head_gain
    left[heads] = chances @ here
    gain, left = np.maximum(gain, 0.0), np.maximum(left, 0.0)  # below 0 where a draw took more than was left
    return State(left, taken + weights * gain, heads, chances)


@cache
def is_here(num_heads: int) -> np.ndarray:
    """1 where a head is left in a set of those that are gone, (S, J)."""
    return 1.0 - (np.arange(1 << num_heads)[:, None] >> np.arange(num_heads) & 1)


def head_draw(pace: np.ndarray, heavy: np.ndarray) -> np.ndarray:
    """sum_{j in S} w(j) q(S - j) of q, (S,), and w, (J,)."""
    result = np.zeros_like(pace)
    for slot, weight in enumerate(heavy):
        by_bit(result, slot)[:, 1] += weight * by_bit(pace, slot)[:, 0]
    return result


def choose_heads(weights: np.ndarray, state: State) -> State:
    """The items with the largest expected weight; those that were heads already keep their joint law."""
    left, taken, heads, chances = state
    best = np.argpartition(-weights * left, len(heads) - 1)[: len(heads)]
    leaves = ~np.isin(heads, best)
    heads = heads.copy()
    heads[leaves] = np.setdiff1d(best, heads)
    for slot in np.flatnonzero(leaves).tolist():
        odds = np.array([left[heads[slot]], taken[heads[slot]]])
        chances = (by_bit(chances, slot).sum(axis=1, keepdims=True) * odds[:, None]).ravel()
    return State(left, taken, heads, chances)


def by_bit(chances: np.ndarray, slot: int) -> np.ndarray:
    """(S,) -> (S / 2^(slot + 1), 2, 2^slot), a view: axis 1 says whether head `slot` is gone."""
    return chances.reshape(-1, 2, 1 << slot)
