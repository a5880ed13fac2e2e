"""The proof that the estimators are right: worlds whose true values are known."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from esr_trainer.command_line import main
from offline_eval.__main__ import OfflineEval
from offline_eval.logs.diagnostics import LEAST_SAMPLE
from offline_eval.logs.ope_error import ESTIMATED, LOGS, OpeError, ope_errors
from offline_eval.logs.ope_worlds import (
    FAMILIES,
    NUM_CANDIDATES,
    Arena,
    drawn_value,
    exact_value,
    kuairec_arena,
    softmax,
    synthetic_arena,
)
from tests.conftest import last_json

BIASED = ("dm", "clipped-ips", "dros", "clipped-inclusion")
"""By their nature, whatever the log."""


@pytest.fixture(scope="module")
def arena() -> Arena:
    return synthetic_arena()


@pytest.mark.parametrize("family", ["items", "slates", "two-stage, uniform LSR"])
def test_unbiased_estimators_are_right_on_average(arena: Arena, family: str) -> None:
    for error in ope_errors("synthetic", arena, family, logs=60, rounds=200):
        if error.estimator not in BIASED:
            assert abs(error.bias) < 4 * error.root_mean_squared_error / 60**0.5, error.estimator
        assert 0 <= error.regret <= error.random_regret + 4 * error.regret_error


@pytest.mark.parametrize("lsr", ["noisy", "optimal"])
def test_an_lsr_that_picks_biases_inclusion_weights_and_not_those_of_both_stages(
    arena: Arena, lsr: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offline_eval.logs.ope_error.REGRET_LOGS", 2)
    found = {one.estimator: one for one in ope_errors("synthetic", arena, f"two-stage, {lsr} LSR", logs=5, rounds=1000)}
    assert found["inclusion"].bias > 0.1 * found["inclusion"].true_value
    assert found["sn-inclusion"].bias < -0.04 * found["sn-inclusion"].true_value
    exact = found["candidate-set"]
    assert abs(exact.bias) < 4 * exact.root_mean_squared_error / 5**0.5
    picked = found["sn-iips"]
    assert abs(picked.bias) < 0.02 * picked.true_value
    assert picked.root_mean_squared_error < exact.root_mean_squared_error / 3
    assert picked.effective_sample_size > 4 * exact.effective_sample_size


def test_drawn_values_are_the_exact_ones_where_both_are_known(arena: Arena) -> None:
    """K = N with a uniform LSR shows random items: the world's mean, which a flat policy has too."""
    flat = np.zeros_like(arena.logging)
    assert softmax(flat).sum(axis=1) == pytest.approx(np.ones(30))
    assert NUM_CANDIDATES < 20
    assert drawn_value(arena, flat, "uniform") == pytest.approx(exact_value(arena, flat, 2), rel=0.005)


def test_the_command_writes_what_it_shows(
    tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str], refused: Callable[[int], str]
) -> None:
    options = ["--logs", "3", "--rounds", "50", "--out", tmp_path, "--open-bandit", shared / "data/open_bandit"]
    assert main(OfflineEval, "python -m offline_eval", ["ope-error", *map(str, options), "--json"]) == 0
    out = capsys.readouterr().out
    written = json.loads((tmp_path / "ope.json").read_text())
    assert last_json(out) == written
    assert len(written["errors"]) == sum(map(len, ESTIMATED.values()))
    assert "pseudo-inverse" in out
    for campaign in written["open_bandit"]:
        snips = campaign["estimated"][0]
        assert snips["overlap"]["effective_sample_size"] > 2000
        logged = campaign["logged"]
        assert snips["value"]["low"] < logged["high"]
        assert snips["value"]["high"] > logged["low"]
    missing = ["ope-error", "--logs", "5", "--out", str(tmp_path), "--kuairec", "none.npz"]
    assert "data (none.npz) is not a file" in refused(main(OfflineEval, "python -m offline_eval", missing))


@pytest.mark.slow
@pytest.mark.parametrize("world", ["synthetic", "kuairec"])
def test_intervals_hold_the_true_value_as_often_as_they_say(world: str, request: pytest.FixtureRequest) -> None:
    """500 logs of 1,000 rounds. BCa and t where a promotion may rest on them; empirical Bernstein everywhere.

    Where an LSR picks, inclusion weights are biased, and those of both stages by what a fit to 1,000 rounds leaves.
    """
    if world == "kuairec":
        arena = kuairec_arena(request.getfixturevalue("shared") / "data/kuairec/small_matrix_gt2.npz")
    else:
        arena = synthetic_arena()
    looked_at = []
    for family in FAMILIES:
        picks = family in ("two-stage, noisy LSR", "two-stage, optimal LSR")
        for error in ope_errors(world, arena, family, logs=50 if picks else LOGS):
            if error.estimator in BIASED or (picks and "candidate-set" not in error.estimator):
                continue
            assert error.coverage.get("empirical-bernstein", 1.0) >= 0.95, error
            if is_decisive(error):
                looked_at.append(error.estimator)
                assert 0.925 <= error.coverage["t"] <= 0.975, error
                assert 0.925 <= error.coverage["bca"] <= 0.975, error
    assert {"ips", "snips", "dr", "sndr", "switch-dr", "iips", "pseudo-inverse", "inclusion", "sn-inclusion"} <= set(
        looked_at
    )


def is_decisive(error: OpeError) -> bool:
    return error.effective_sample_size is not None and error.effective_sample_size >= LEAST_SAMPLE
