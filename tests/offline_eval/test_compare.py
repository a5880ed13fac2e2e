from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from esr_trainer.__main__ import command_line
from esr_trainer.checkpoint import Checkpoint
from esr_trainer.command_line import main
from offline_eval.__main__ import OfflineEval
from offline_eval.intervals import bootstrap
from tests.conftest import last_json

SMALL = ["--environment", "synthetic", "--candidates", "10", "--experts", "2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run that learned, one that hardly did, one of another K, one of another world."""
    root = tmp_path_factory.mktemp("runs")
    options = {
        "long": ["--steps", "400"],
        "short": ["--steps", "1"],
        "of-20": ["--steps", "1", "--candidates", "20"],
        "elsewhere": ["--steps", "1", "--world-seed", "5"],
        "smaller": ["--steps", "1", "--items", "40", "--contexts", "20"],
    }
    for name, extra in options.items():
        assert command_line([*SMALL, *extra, "--out", str(root / name)]) == 0
    return {name: root / name for name in options}


def compare(*arguments: object) -> int:
    return main(OfflineEval, "python -m offline_eval", ["compare", *map(str, arguments)])


def test_bootstrap_covers_the_mean() -> None:
    generator = np.random.default_rng(0)
    estimates = [bootstrap(generator.normal(1.0, 2.0, 200), seed) for seed in range(200)]
    covered = np.mean([estimate.low < 1.0 < estimate.high for estimate in estimates])
    assert 0.9 <= covered <= 0.99
    assert np.mean([estimate.high - estimate.low for estimate in estimates]) == pytest.approx(
        2 * 1.96 * 2 / 200**0.5, rel=0.1
    )


def test_bootstrap_of_equal_values_is_a_point() -> None:
    assert bootstrap(np.full(5, 3.0)) == (3, 3, 3)


def test_the_better_run_wins_by_a_paired_difference(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(runs["long"], "--baseline", runs["short"], "--json") == 0
    out = capsys.readouterr().out
    result = last_json(out)
    popularity, short, long = result["judged"]
    assert long["policy_value"]["mean"] == pytest.approx(Checkpoint(runs["long"]).description.metrics["policy_value"])
    assert short["difference"] is None
    assert long["difference"]["mean"] == pytest.approx(
        long["policy_value"]["mean"] - short["policy_value"]["mean"], abs=1e-5
    )
    assert long["difference"]["low"] > 0
    assert long["difference"]["high"] - long["difference"]["low"] > 0
    assert popularity["name"] == "popularity"
    assert str(runs["long"]) in out
    assert result["uniform_policy_value"] < long["policy_value"]["mean"] < result["optimal_policy_value"]


def test_permuted_contexts_cost_the_trained_run_its_value(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(runs["long"], "--json") == 0
    result = last_json(capsys.readouterr().out)
    assert result["baseline"] == "popularity"
    trained = result["judged"][1]
    assert trained["permuted"]["high"] < trained["policy_value"]["low"]


def test_a_run_against_itself_differs_by_nothing(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(runs["long"], "--baseline", runs["long"], "--json") == 0
    assert last_json(capsys.readouterr().out)["judged"][2]["difference"] == {"mean": 0, "low": 0, "high": 0}


def test_a_world_is_opened_again_in_its_own_shape(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(runs["smaller"], "--json") == 0
    assert last_json(capsys.readouterr().out)["num_contexts"] == 20


def test_runs_that_cannot_be_compared_are_refused(
    runs: dict[str, Path], tmp_path: Path, refused: Callable[[int], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "was trained in another world" in refused(compare(runs["long"], runs["elsewhere"]))
    assert "candidates 20" in refused(compare(runs["long"], runs["of-20"]))
    assert "holds no checkpoint" in refused(compare(tmp_path))
    assert "CANDIDATE" in refused(compare())
    assert "slate (30) exceeds candidates (10)" in refused(compare(runs["long"], "--slate", "30"))
    assert "candidates (1001) exceeds" in refused(compare(runs["long"], "--candidates", "1001"))
    assert compare(runs["long"], runs["of-20"], "--candidates", "15", "--json") == 0
    assert last_json(capsys.readouterr().out)["system"]["candidates"] == 15
