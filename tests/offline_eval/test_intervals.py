"""Intervals of a mean: against scipy, by hand, and by how often they hold the mean."""

import math

import numpy as np
import pytest
from scipy import stats

from esr_trainer.command_line import UsageError
from offline_eval.intervals import (
    INTERVALS,
    RESAMPLES,
    Estimate,
    Sample,
    bootstrap,
    bootstraps,
    empirical_bernstein,
    sample_of,
    student_t,
)


@pytest.mark.parametrize("draw", ["normal", "exponential", "clicks"])
def test_bca_is_scipys_on_the_same_resamples(draw: str) -> None:
    generator = np.random.default_rng(3)
    values = {
        "normal": generator.normal(5, 2, 300),
        "exponential": generator.exponential(size=300),
        "clicks": (generator.random(300) < 0.05).astype(float),
    }[draw]
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, rng=np.random.default_rng(0), batch=256
    ).confidence_interval
    assert bootstrap(values) == pytest.approx((values.mean(), theirs.low, theirs.high), abs=1e-12)


def test_columns_are_resampled_together_and_a_constant_one_is_a_point() -> None:
    values = np.random.default_rng(0).normal(size=(50, 3))
    values[:, 1] = 2.0
    together = bootstraps(values, seed=7)
    assert together[0] == pytest.approx(bootstrap(values[:, 0], seed=7), abs=1e-12)
    assert together[1] == (2, 2, 2)
    assert together[2] == pytest.approx(bootstrap(values[:, 2], seed=7), abs=1e-12)


def test_student_t_by_hand() -> None:
    """Mean 2, variance 1, n = 3: t_2(0.975) = 4.302653, so 2 +- 4.302653 / sqrt 3 = 2 +- 2.484138."""
    assert student_t(sample_of(np.array([1.0, 2.0, 3.0]))) == pytest.approx((2, -0.484138, 4.484138), abs=1e-6)


def test_empirical_bernstein_by_hand() -> None:
    """n = 101 of variance 0.04 in [0, 1]: ln 80 = 4.382027; sqrt(2 x 0.04 x 4.382027 / 101) = 0.058915 and
    7 x 4.382027 / 300 = 0.102247: 0.161162 on either side."""
    estimate = empirical_bernstein(Sample(np.full(101, 0.5), 101, 0.04, 1.0))
    assert estimate == pytest.approx((0.5, 0.5 - 0.161162, 0.5 + 0.161162), abs=1e-6)


def test_empirical_bernstein_without_a_bound_is_refused() -> None:
    with pytest.raises(UsageError, match="needs a bound of a round's value; it is nan"):
        empirical_bernstein(sample_of(np.arange(5.0)))


@pytest.mark.parametrize("name", INTERVALS)
def test_every_interval_holds_its_mean_and_narrows_with_more_rounds(name) -> None:
    generator = np.random.default_rng(1)
    widths = []
    for count in (100, 10_000):
        estimate = INTERVALS[name](sample_of(generator.random(count), spread=1.0))
        assert isinstance(estimate, Estimate)
        assert estimate.low < estimate.mean < estimate.high
        widths.append(estimate.high - estimate.low)
    assert widths[1] < widths[0] / 8


def test_rounds_in_random_units_have_the_interval_of_the_rounds() -> None:
    """20,000 skewed rounds, in 1,000 units of 20: variance and skewness of the mean stay what they are."""
    values = np.random.default_rng(2).exponential(size=20_000)
    rounds, units = bootstrap(values), bootstrap(values.reshape(1000, 20).mean(axis=1))
    width = rounds.high - rounds.low
    assert units.mean == pytest.approx(rounds.mean, abs=1e-12)
    assert (units.low, units.high) == pytest.approx((rounds.low, rounds.high), abs=0.1 * width)
    assert math.isclose(units.high - units.low, width, rel_tol=0.1)
