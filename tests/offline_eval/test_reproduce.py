"""Experiments: cells run once, means and paired differences by hand, and the command."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from esr_trainer.command_line import main
from esr_trainer.config import TrainConfig
from offline_eval.__main__ import OfflineEval
from offline_eval.reproduce.cells import Cell, CellResult, read_results, run_cell
from offline_eval.reproduce.curves import new_run
from offline_eval.reproduce.experiments import EXPERIMENTS
from offline_eval.reproduce.plan import BUDGETS, Plan
from offline_eval.reproduce.summary import summarise
from tests.conftest import last_json, run_module


def result(estimator: str, seed: int, values: list[float], candidates: int = 10) -> CellResult:
    config = TrainConfig.model_validate(
        {"estimator": estimator, "seed": seed, "steps": 100, "candidates": candidates, "experts": 1}
    )
    return CellResult(
        cell=Cell(learner="policy-gradient", config=config),
        steps=[0, 20, 40, 100],
        policy_value=values,
        references={"uniform": 1.0, "popularity": 2.0, "initial": 1.0, "optimal": 10.0},
        failure=None,
        seconds=1.0,
        commit="abc",
    )


def test_a_summary_pairs_the_seeds_and_counts_the_steps() -> None:
    results = [
        result("top1", 0, [1, 5, 8, 9.0]),
        result("top1", 1, [1, 5, 8, 9.4]),
        result("top1", 2, [1, 5, 8, 9.2]),
        result("ca-poisson", 0, [1, 6, 9.5, 9.95]),
        result("ca-poisson", 1, [1, 6, 9.4, 9.92]),
        result("ca-poisson", 2, [1, 7, 9.6, 9.8]),
        result("ca-poisson", 0, [1, 2, 3, 4.0], candidates=20),
    ]
    top1, poisson, other = summarise(results, {"estimator": "top1"})
    assert top1.settings == {"estimator": "top1", "candidates": 10}
    assert top1.difference is None
    assert top1.steps_to == {0.95: None, 0.99: None}
    assert poisson.values[20].mean == pytest.approx(19 / 3)
    assert poisson.values[20].margin == pytest.approx(np.std([6, 6, 7], ddof=1) / math.sqrt(3))
    assert poisson.steps_to == {0.95: 40, 0.99: 100}  # medians of (40, 100, 40) and (100, 100, never)
    differences = [0.95, 0.52, 0.6]
    assert poisson.difference is not None
    assert poisson.difference.mean == pytest.approx(np.mean(differences))
    half = stats.t.ppf(0.975, 2) * np.std(differences, ddof=1) / math.sqrt(3)
    assert poisson.difference.margin == pytest.approx(half)
    assert other.difference is None, "no rival of the same K"


def test_a_cell_learns_what_the_trainer_learns(tmp_path: Path) -> None:
    config = TrainConfig(environment="synthetic", candidates=10, experts=1, steps=12, evaluate_every=4, seed=3)
    found = run_cell(Cell(learner="policy-gradient", config=config), tmp_path)
    trainer = new_run(config)
    while trainer.step < 12:
        trainer.advance()
    trainer.evaluate()
    assert found.steps == [0, 4, 8, 12]
    assert found.policy_value[-1] == pytest.approx(trainer.metrics["policy_value"], abs=1e-5)
    assert found.failure is None


def test_best_takes_each_estimators_best_of_the_grid(tmp_path: Path) -> None:
    plan = Plan(BUDGETS["smoke"], None, tmp_path)
    cells = EXPERIMENTS["grid"].cells(plan)
    wanted = {"v": 0.3, "v-swr": 0.1, "ca": 0.03, "top1": 0.003, "ca-poisson": 0.01}
    rows = []
    for cell in cells:
        value = 2.0 if cell.config.learning_rate == wanted[cell.config.estimator] else 1.0
        stored = result(cell.config.estimator, 0, [0, 0, 0, value])
        rows.append(stored.model_copy(update={"cell": cell}).model_dump_json())
    head = '{"command":"c","machine":"m","torch":"t","results":['
    (tmp_path / "grid.json").write_text(head + ",".join(rows) + "]}")
    best = EXPERIMENTS["best"].cells(plan)
    assert {cell.config.estimator: cell.config.learning_rate for cell in best} == wanted
    assert {cell.config.seed for cell in best} == {0, 1}


def test_a_finished_run_is_never_computed_again(tmp_path: Path) -> None:
    command = ("presets", tmp_path, "--seeds", "1", "--workers", "1", "--shared", str(tmp_path / "none"))
    assert reproduce(*command) == 0
    path = tmp_path / "presets.json"
    stored = read_results(path)
    assert len(stored) == len(EXPERIMENTS["presets"].cells(Plan(BUDGETS["smoke"]._replace(seeds=1), None, tmp_path)))
    assert (tmp_path / "presets.png").stat().st_size > 10_000
    assert "<svg" in (tmp_path / "presets.svg").read_text()
    assert not list((tmp_path / "unfinished").glob("*"))
    content = json.loads(path.read_text())
    dropped = content["results"].pop(1)
    path.write_text(json.dumps(content))
    assert reproduce(*command) == 0
    by_key = {result.cell.key: result for result in read_results(path)}
    assert len(by_key) == len(stored)
    for before in stored:
        after = by_key[before.cell.key]
        if after.cell == CellResult.model_validate(dropped).cell:
            assert after.policy_value == before.policy_value, "a run gives the same values again"
        else:
            assert after == before, "seconds and all: not computed again"


def test_a_broken_result_file_is_refused(tmp_path: Path, refused: Callable[[int], str]) -> None:
    (tmp_path / "presets.json").write_text("{")
    line = refused(reproduce("presets", tmp_path))
    assert line.startswith(f"error: results ({tmp_path / 'presets.json'}) cannot be read")


def test_resume_never_refuses_where_results_are(tmp_path: Path, refused: Callable[[int], str]) -> None:
    (tmp_path / "presets.json").write_text("{}")
    line = refused(reproduce("presets", tmp_path, "--resume", "never"))
    assert line.startswith(f"error: resume (never): {tmp_path / 'presets.json'} is there")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the test asks for in vain")
def test_a_device_that_is_not_there_is_refused(tmp_path: Path, refused: Callable[[int], str]) -> None:
    assert "device (cuda)" in refused(reproduce("presets", tmp_path, "--device", "cuda"))


def test_best_without_its_grid_says_what_to_run(tmp_path: Path, refused: Callable[[int], str]) -> None:
    assert "run `reproduce grid` first" in refused(reproduce("best", tmp_path))


def test_what_is_for_ma2020_is_refused_elsewhere(tmp_path: Path, refused: Callable[[int], str]) -> None:
    assert "world (xmc) is for ma2020, not for presets" in refused(reproduce("presets", tmp_path, "--world", "xmc"))
    of_nothing = reproduce("ma2020", tmp_path, "--world", "xmc", "--data", "nowhere")
    assert "data (nowhere) is not a file" in refused(of_nothing)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["table2", "table3", "table4", "table6", "figure3"])
def test_smoke_fills_every_place(name: str, tmp_path: Path, shared: Path) -> None:
    done = run_module("offline_eval", "reproduce", name, *SMOKE, "--shared", shared, "--results", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    tables = last_json(done.stdout)["tables"]
    assert all("not run" not in cell for table in tables for row in table["rows"] for cell in row)


SMOKE = ("--budget", "smoke", "--seeds", "1")


def reproduce(name: str, results: Path, *more: str) -> int:
    """The command in this process; test_workers and the slow tests start it as a process."""
    arguments = ["reproduce", name, "--budget", "smoke", "--results", str(results), *more]
    return main(OfflineEval, "python -m offline_eval", arguments)
