"""Overlap and calibration."""

import numpy as np
import pytest

from offline_eval.intervals import Estimate
from offline_eval.logs.diagnostics import (
    Calibration,
    Running,
    gates,
    inclusion_deciles,
    inverse_sums,
    outside,
    overlap,
)


def running(*pages: list[float]) -> Running:
    found = Running()
    for page in pages:
        found.add(np.array(page))
    return found


def test_overlap_by_hand() -> None:
    """w = 0, 1, 3, 4: sum 8, squares 26, so 64 / 26 rounds; half of the weight on one; 3 of 4 supported."""
    found = overlap("log_ratios", running([0.0, 1.0], [], [3.0, 4.0]))
    assert found[1:6] == pytest.approx((4, 64 / 26, 4, 0.5, 0.75))
    assert found.mean_weight.mean == 2


def test_running_numbers_are_those_of_all_at_once() -> None:
    values = np.random.default_rng(0).normal(1e6, 1, 1000)
    found = running(values[:300].tolist(), values[300:].tolist())
    assert found.mean == pytest.approx(values.mean(), rel=1e-12)
    half = (found.interval().high - found.interval().low) / 2
    assert half == pytest.approx(1.962341 * values.std(ddof=1) / 1000**0.5, rel=1e-6)


def test_no_weight_at_all_is_no_support() -> None:
    found = overlap("log_set_ratios", running([0.0, 0.0]))
    assert (found.effective_sample_size, found.largest_share, found.supported_share) == (0, 1, 0)
    assert not any(gate.passed for gate in gates(found, None))


def test_gates_hold_what_the_log_cannot_tell() -> None:
    good = overlap("log_ratios", running(np.random.default_rng(0).exponential(size=1000).tolist()))
    assert all(gate.passed for gate in gates(good, Calibration(50, Estimate(50.3, 50.1, 50.5), ())))
    broken = {
        "effective sample size": good._replace(effective_sample_size=399.0),
        "largest weight's share": good._replace(largest_share=0.11),
        "share of rounds with support": good._replace(supported_share=0.9),
        "distance of 1 from the mean weight's interval": good._replace(mean_weight=Estimate(0.8, 0.7, 0.9)),
    }
    for name, found in broken.items():
        (failed,) = (gate for gate in gates(found, None) if not gate.passed)
        assert (failed.name, failed.failing_means) == (name, "hold")
    (failed,) = (gate for gate in gates(good, Calibration(50, Estimate(60, 58, 62), ())) if not gate.passed)
    assert failed.value == pytest.approx(8 / 50)


def test_outside_is_the_way_to_the_nearer_end() -> None:
    interval = Estimate(2, 1, 3)
    assert [outside(interval, value) for value in (0.5, 1, 2.5, 7)] == [0.5, 0, 0, 4]


def test_inverse_sums_leave_padding_out() -> None:
    assert inverse_sums(np.array([[0.5, 0.25], [1.0, np.nan]])).tolist() == [6, 1]


def test_drawn_candidates_fall_into_their_deciles_as_often_as_predicted() -> None:
    generator = np.random.default_rng(1)
    inclusion = generator.random((400, 50))
    deciles = inclusion_deciles(inclusion, generator.random((400, 50)) < inclusion)
    assert [decile.num_pairs for decile in deciles] == [2000] * 10
    assert deciles[0].predicted > 0.9 > deciles[1].predicted
    for decile in deciles:
        error = (decile.predicted * (1 - decile.predicted) / decile.num_pairs) ** 0.5
        assert abs(decile.observed - decile.predicted) < 4 * error
