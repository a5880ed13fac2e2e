"""What arXiv:2605.26385 published, as data: tables 2 to 6 and figure 4, to stand beside what is run here.

A policy value is a mean over 10 seeds; the number in brackets beside it, by its size a standard error. Steps are
gradient steps; a run that ended with a "gradient overflow" is published at its interruption.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Published(NamedTuple):
    """A published mean."""

    mean: float
    error: float
    """Standard error over 10 seeds."""


AtSteps = Mapping[int, Published]
"""Gradient steps -> policy value."""

Rows = Mapping[str, Mapping[str, AtSteps]]
"""Estimator's name here -> column -> policy value at each number of steps."""

EARLY, LATE = 50_000, 500_000
"""Gradient steps at which policy values are published."""


def both(early: float, early_error: float, late: float, late_error: float) -> AtSteps:
    """A cell at EARLY and LATE."""
    return {EARLY: Published(early, early_error), LATE: Published(late, late_error)}


def late(mean: float, error: float) -> AtSteps:
    """A cell at LATE alone."""
    return {LATE: Published(mean, error)}


TABLE_2: Rows = {
    "v": {
        "K=5": both(7.09, 0.22, 7.22, 0.32),
        "K=10": both(7.16, 0.27, 7.17, 0.27),
        "K=20": both(6.86, 0.34, 6.86, 0.34),
        "optimal": both(7.16, 0.27, 7.17, 0.27),
        "noisy": both(7.25, 0.31, 7.25, 0.32),
        "uniform": both(3.27, 0.28, 3.28, 0.29),
        "anti": both(1.07, 0.02, 1.07, 0.03),
    },
    "v-swr": {
        "K=5": both(7.68, 0.03, 8.33, 0.03),
        "K=10": both(7.80, 0.03, 8.54, 0.02),
        "K=20": both(7.88, 0.04, 8.74, 0.03),
        "optimal": both(7.80, 0.03, 8.54, 0.02),
        "noisy": both(7.86, 0.03, 8.55, 0.04),
        "uniform": both(3.80, 0.05, 6.39, 0.08),
        "anti": both(1.05, 0.01, 1.08, 0.01),
    },
    "ca": {
        "K=5": both(7.39, 0.03, 8.19, 0.03),
        "K=10": both(7.99, 0.03, 8.44, 0.17),
        "K=20": both(8.39, 0.02, 8.70, 0.12),
        "optimal": both(7.99, 0.03, 8.44, 0.17),
        "noisy": both(8.14, 0.04, 8.42, 0.18),
        "uniform": both(5.64, 0.11, 6.73, 0.13),
        "anti": both(1.00, 0.01, 1.00, 0.01),
    },
    "ca-swr": {
        "K=5": both(7.37, 0.04, 8.11, 0.03),
        "K=10": both(7.94, 0.03, 8.40, 0.03),
        "K=20": both(8.33, 0.01, 8.62, 0.02),
        "optimal": both(7.94, 0.03, 8.40, 0.03),
        "noisy": both(8.11, 0.04, 8.41, 0.04),
        "uniform": both(5.79, 0.09, 6.90, 0.14),
        "anti": both(1.00, 0.01, 1.00, 0.01),
    },
}
"""Synthetic world, L = 1, M = 1; K with the optimal LSR, and LSRs at K = 10."""

TABLE_3: Rows = {
    "v": {
        "L=1 M=1": late(7.17, 0.27),
        "L=1 M=5": late(7.63, 0.54),
        "L=5 M=1": late(25.0, 2.22),
        "L=5 M=5": late(26.5, 3.95),
    },
    "v-swr": {
        "L=1 M=1": late(8.54, 0.02),
        "L=1 M=5": late(8.58, 0.03),
        "L=5 M=1": late(38.1, 0.19),
        "L=5 M=5": late(37.2, 0.07),
    },
    "ca": {
        "L=1 M=1": late(8.44, 0.17),
        "L=1 M=5": late(8.88, 0.02),
        "L=5 M=1": late(36.2, 0.64),
        "L=5 M=5": late(37.2, 1.00),
    },
    "ca-swr": {
        "L=1 M=1": late(8.40, 0.03),
        "L=1 M=5": late(8.82, 0.02),
        "L=5 M=1": late(36.3, 0.18),
        "L=5 M=5": late(37.6, 0.09),
    },
}
"""Synthetic world, K = 10, optimal LSR; L = 5 sums the slots."""

TABLE_4: Rows = {
    "v-swr": {
        "K=50": both(5.05, 0.06, 7.91, 0.05),
        "K=100": both(5.39, 0.07, 8.22, 0.05),
        "K=200": both(5.92, 0.08, 8.26, 0.07),
    },
    "ca-swr": {
        "K=50": both(5.61, 0.05, 7.19, 0.07),
        "K=100": both(6.37, 0.04, 7.82, 0.03),
        "K=200": both(7.10, 0.06, 8.32, 0.04),
    },
}
"""KuaiRec's original, continuous watch_ratio."""

TABLE_6: Rows = {
    "v-swr": {
        "K=20": both(8.71, 0.03, 8.88, 0.03),
        "K=50": both(8.84, 0.01, 8.98, 0.03),
        "K=100": both(8.93, 0.02, 9.02, 0.03),
        "K=200": both(9.00, 0.02, 9.06, 0.03),
    },
    "ca-swr": {
        "K=20": both(8.58, 0.03, 8.97, 0.03),
        "K=50": both(8.89, 0.02, 9.07, 0.03),
        "K=100": both(9.02, 0.02, 9.10, 0.02),
        "K=200": both(9.08, 0.02, 9.11, 0.03),
    },
}
"""Synthetic world, M = 5, with GRPO. 9.11 exceeds that world's optimum, 9.1088: valued on 10,000 drawn rounds."""


class InclusionGap(NamedTuple):
    """A column of table 5."""

    error: float
    """Relative absolute error of CA-PG's approximated action probability, against 1,000 Monte-Carlo draws."""
    gap: float
    """Mean logit gap of the top K."""


TABLE_5: tuple[tuple[InclusionGap, ...], ...] = (
    (
        InclusionGap(2.3e-3, 3.20),
        InclusionGap(9.2e-3, 2.78),
        InclusionGap(2.7e-2, 2.28),
        InclusionGap(5.7e-2, 1.89),
    ),
    (
        InclusionGap(4.2e-3, 6.40),
        InclusionGap(1.4e-5, 5.55),
        InclusionGap(5.0e-4, 4.57),
        InclusionGap(4.2e-3, 3.78),
    ),
    (
        InclusionGap(0.0, 16.0),
        InclusionGap(0.0, 13.9),
        InclusionGap(0.0, 11.4),
        InclusionGap(4.7e-6, 9.45),
    ),
)
"""Temperature falls from group to group, K grows within each."""

FIGURE_4_SHAPES = ((5, 1), (10, 1), (20, 1), (20, 5))
"""(K, L) of FIGURE_4's columns, M = 1."""

FIGURE_4: Mapping[str, tuple[float, ...]] = {
    "v": (28.9, 32.1, 38.3, 40.5),
    "v-swr": (27.4, 27.4, 28.0, 27.5),
    "ca": (29.5, 33.3, 42.1, 56.7),
    "ca-swr": (26.8, 27.1, 27.3, 25.9),
}
"""Seconds per 1,000 steps, read off the figure; a MacBook Pro M1's CPU."""

FIGURE_4_MIXTURE = 50.5
"""The same of TOP1-PG with M = 5, K = 200."""

FIGURE_4_HERE: Mapping[str, float] = {"v": 135, "v-swr": 115, "ca": 116, "ca-swr": 109}
"""The paper's code at K = 10, L = 1, M = 1 on a 2-core machine like those used here, one thread."""
