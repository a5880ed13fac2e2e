"""Figure 3's claims, by hand."""

import math

import pytest

from esr_trainer.config import TrainConfig
from offline_eval.reproduce.cells import Cell, CellResult
from offline_eval.reproduce.speed import first_non_finite_step, sooner, speed_grid, step_of


def run(estimator: str, seed: int, values: list[float], failure: str | None = None) -> CellResult:
    config = TrainConfig.model_validate({"estimator": estimator, "seed": seed, "preset": "paper", "steps": 30})
    return CellResult(
        cell=Cell(learner="policy-gradient", config=config),
        steps=[0, 10, 20, 30][: len(values)],
        policy_value=values,
        references={"uniform": 1.0, "popularity": 2.0, "initial": 1.0, "optimal": 10.0},
        failure=failure,
        seconds=1.0,
        commit="abc",
    )


def test_a_value_is_reached_on_the_line_between_two_evaluations() -> None:
    result = run("ca", 0, [1.0, 3.0, 7.0, 7.0])
    assert step_of(result, 2.0) == pytest.approx(5)
    assert step_of(result, 6.0) == pytest.approx(17.5)
    assert step_of(result, 7.0) == pytest.approx(20)
    assert step_of(result, 7.1) == math.inf


def test_how_much_sooner_is_a_geometric_mean_over_seeds() -> None:
    # 95 % of V-PG-SwR's 8.0 is 7.6: it gets there at 10 + 10 x 1.6 / 2 = 18 steps.
    rival = [run("v-swr", seed, [0.0, 6.0, 8.0, 8.0]) for seed in (0, 1)]
    fast = [run("ca", 0, [0.0, 15.2, 16.0, 16.0]), run("ca", 1, [0.0, 7.6, 8.0, 8.0])]  # after 5 and 10 steps
    found = sooner(fast, rival)
    assert found is not None
    assert found.ratio == pytest.approx(math.sqrt(18 / 5 * 18 / 10))
    assert found.low < found.ratio < found.high
    assert found.low * found.high == pytest.approx(found.ratio**2)
    assert sooner([run("ca", 0, [0.0, 1.0, 2.0, 3.0])], rival) is None, "never gets there"
    alone = sooner(fast[:1], rival)
    assert alone is not None
    assert alone.ratio == pytest.approx(18 / 5)
    assert math.isnan(alone.low)


def test_the_step_of_a_gradient_that_is_not_finite_is_read_from_the_failure() -> None:
    broken = run("v", 1, [1.0, 2.0], "step 17: gradient of estimator v has norm inf")
    assert first_non_finite_step(broken) == 17
    assert first_non_finite_step(run("v", 0, [1.0, 2.0, 3.0, 4.0])) is None
    grid = speed_grid({str(seed): r for seed, r in enumerate([run("v", 0, [1.0, 2.0, 3.0, 4.0]), broken])})
    assert grid.rows[0][3] == "none, 17"
