"""Terms reduced page by page are the terms of the whole log."""

import numpy as np
import pytest

from offline_eval.intervals import empirical_bernstein, student_t
from offline_eval.logs.term_sums import TermSums
from offline_eval.logs.weighed_rounds import Terms, per_round


def terms(count: int, seed: int, shift: float = 0.0) -> Terms:
    generator = np.random.default_rng(seed)
    weight = generator.exponential(size=count)
    return Terms(generator.normal(size=count) + shift, weight * generator.random(count), weight)


def summed(mine: Terms, theirs: Terms, page: int, num_units: int) -> TermSums:
    sums = TermSums(num_units)
    for start in range(0, len(mine.control), page):
        rows = slice(start, start + page)
        sums.add(Terms(*(part[rows] for part in mine)), Terms(*(part[rows] for part in theirs)))
    return sums


@pytest.mark.parametrize("page", [7, 1000])
def test_up_to_as_many_rounds_as_units_each_is_kept(page: int) -> None:
    mine, theirs = terms(100, 1), terms(100, 2)
    sums = summed(mine, theirs, page, 128)
    assert sums.value().values == pytest.approx(per_round(mine), rel=1e-12)
    assert sums.baseline().values == pytest.approx(per_round(theirs), rel=1e-12)
    assert sums.difference().values == pytest.approx(per_round(mine) - per_round(theirs), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_of_more_rounds_mean_and_variance_stay_those_of_the_rounds(shift: float) -> None:
    """1,000 rounds in 64 units of unequal size; far from 0 as well."""
    mine, theirs = terms(1000, 3, shift), terms(1000, 4, shift)
    sums = summed(mine, theirs, 130, 64)
    for sample, values in (
        (sums.value(), per_round(mine)),
        (sums.difference(), per_round(mine) - per_round(theirs)),
    ):
        assert sample.values.shape == (64,)
        assert sample.num_rounds == 1000
        assert sample.values.mean() == pytest.approx(values.mean(), rel=1e-12, abs=1e-9)
        assert sample.variance == pytest.approx(values.var(ddof=1), rel=1e-6)
    assert student_t(sums.value()).high > student_t(sums.value()).mean


def test_units_spread_as_the_mean_of_their_rounds() -> None:
    sample = summed(terms(50_000, 5), terms(50_000, 6), 10_000, 500).value()
    assert sample.values.var(ddof=1) == pytest.approx(sample.variance / 100, rel=0.15)


def test_a_candidate_against_itself_differs_by_nothing() -> None:
    same = terms(300, 7)
    sample = summed(same, same, 100, 64).difference(1.0, 1.0)
    assert not sample.values.any()
    assert sample.variance == 0


def test_spreads_are_divided_by_the_denominators_mean() -> None:
    """Denominators of mean 2 and 1/2: terms that lie within 3 and 1 of each other come to 3/2 and 2."""
    mine = Terms(np.zeros(2), np.array([1.0, 2.0]), np.array([1.0, 3.0]))
    theirs = Terms(np.zeros(2), np.array([1.0, 2.0]), np.array([0.5, 0.5]))
    sums = summed(mine, theirs, 2, 8)
    assert sums.value(3.0).spread == pytest.approx(1.5)
    assert sums.difference(3.0, 1.0).spread == pytest.approx(3.5)
    assert empirical_bernstein(sums.value(3.0)).mean == pytest.approx(0.75)
