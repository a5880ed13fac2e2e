import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from esr_trainer.__main__ import command_line
from esr_trainer.checkpoint import Checkpoint
from esr_trainer.command_line import main
from esr_trainer.environments import open_world
from esr_trainer.system import system_of
from offline_eval.__main__ import OfflineEval
from offline_eval.intervals import bootstrap
from offline_eval.replay.comparison import Comparison, Judged
from offline_eval.replay.judging import trained
from serving.export import export
from tests.conftest import last_json, run_module

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


@pytest.fixture(scope="module")
def exported(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundle of the run that learned, of the one that hardly did, and of the first with an approximate index."""
    root = tmp_path_factory.mktemp("exported")
    return {
        "long": export(runs["long"], root / "long"),
        "short": export(runs["short"], root / "short").parent,
        "ivf": export(runs["long"], root / "ivf", index="ivf", min_recall=0.5),
    }


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
    assert compare(runs["long"], "--baseline", runs["short"], "--json") == 0  # exports the candidate itself
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
    runs: dict[str, Path], exported: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(runs["long"], "--bundle", exported["long"], "--json") == 0
    result = last_json(capsys.readouterr().out)
    assert result["baseline"] == "popularity"
    assert result["judged"][0]["difference"] is None
    trained = result["judged"][1]
    assert trained["permuted"]["high"] < trained["policy_value"]["low"]
    lost = trained["policy_value"]["mean"] - trained["permuted"]["mean"]
    assert trained["lost_when_permuted"]["mean"] == pytest.approx(lost, abs=1e-5)


def test_the_exit_code_of_a_process_is_the_verdict(  # promote, with an export: tests/test_pipeline.py
    runs: dict[str, Path], exported: dict[str, Path]
) -> None:
    arguments = ("compare", runs["short"], "--baseline", runs["long"], "--bundle", exported["short"])
    done = run_module("offline_eval", *arguments)
    assert done.returncode == 4, done.stderr
    assert f"verdict: reject {runs['short']}: " in done.stdout
    assert "Traceback" not in done.stderr


def test_a_run_against_itself_differs_by_nothing_and_is_held(
    runs: dict[str, Path], exported: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(runs["long"], "--baseline", runs["long"], "--bundle", exported["long"], "--json") == 3
    out = capsys.readouterr().out
    assert f"verdict: hold {runs['long']}: " in out
    result = last_json(out)
    itself = result["judged"][2]
    assert itself["difference"] == {"mean": 0, "low": 0, "high": 0}
    assert itself["measures"]["novelty"] == 0
    assert itself["served"]["regret"] <= 1e-5
    assert "does not lie above 0" in itself["verdict"]["because"]
    assert result["exit_code"] == 3


def test_an_untrained_run_is_rejected_for_ignoring_its_context(
    runs: dict[str, Path], exported: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(runs["short"], "--baseline", runs["short"], "--bundle", exported["short"], "--json") == 4
    assert "permuted" in last_json(capsys.readouterr().out)["judged"][2]["verdict"]["because"]


def test_a_margin_above_the_gain_holds(runs: dict[str, Path], exported: dict[str, Path]) -> None:
    versus = (runs["long"], "--baseline", runs["short"], "--bundle", exported["long"])
    assert compare(*versus, "--margin", "1") == 0
    assert compare(*versus, "--margin", "3") == 3


def test_a_bundle_of_another_checkpoint_is_caught(
    runs: dict[str, Path], exported: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = (runs["short"], "--baseline", runs["short"], "--bundle", exported["long"])
    assert compare(*wrong, "--json") == 4  # though what it serves is far better
    judged = last_json(capsys.readouterr().out)["judged"][2]
    assert judged["difference"]["low"] > 0
    assert judged["served"]["regret"] > 0.01
    assert judged["served"]["moved"] > 0.9
    assert "train/serve skew" in judged["verdict"]["because"]


def test_an_approximate_index_is_held_to_its_recall(
    runs: dict[str, Path], exported: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    versus = (runs["long"], "--baseline", runs["short"], "--bundle", exported["ivf"], "--json")
    assert compare(*versus, "--min-recall", "0.9") == 0
    served = last_json(capsys.readouterr().out)["judged"][2]["served"]
    assert served["regret"] is None
    assert 0.9 < served["recall"] < 1
    assert compare(*versus, "--min-recall", "1") == 4
    because = last_json(capsys.readouterr().out)["judged"][2]["verdict"]["because"]
    assert because.startswith("recall@K of the ivf index is 0.9")
    assert compare(runs["short"], "--bundle", exported["ivf"]) == 4


def test_of_several_candidates_the_best_gives_the_exit_code_and_pays_for_the_choice(
    runs: dict[str, Path], exported: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bundles = ("--bundle", exported["short"], "--bundle", exported["long"])
    assert compare(runs["short"], runs["long"], "--baseline", runs["short"], *bundles, "--json") == 0
    out = capsys.readouterr().out
    result = last_json(out)
    assert [judged["verdict"] and judged["verdict"]["decision"] for judged in result["judged"]] == [
        None,
        None,
        "reject",
        "promote",
    ]
    assert result["best"] == str(runs["long"])
    assert set(result) == {*Comparison._fields, "best", "exit_code"}
    assert [set(judged) for judged in result["judged"]] == [set(Judged._fields)] * 4
    assert result["confidence"] == pytest.approx(0.975)
    assert f"best of 2: {runs['long']} (promote)" in out
    assert "97.5 %" in out
    assert "Bonferroni" in out


def test_a_segment_that_surely_loses_holds(
    runs: dict[str, Path], exported: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "segments.csv"
    versus = (runs["long"], "--baseline", runs["short"], "--bundle", exported["long"], "--json")
    by = ("--segments", table, "--by", "group")
    table.write_text("id,group\n" + "".join(f"{row},{'even' if row % 2 == 0 else 'odd'}\n" for row in range(999)))
    assert compare(*versus, *by) == 0
    result = last_json(capsys.readouterr().out)
    even, odd = result["judged"][2]["segments"]
    assert (even["value"], even["num_contexts"], odd["num_contexts"]) == ("even", 500, 499)
    assert result["segment_confidence"] == pytest.approx(0.975)
    assert result["judged"][1]["segments"][0]["difference"] is None

    losers = losing_contexts(runs)
    table.write_text("id,group\n" + "".join(f"{row},{'lost' if row in losers else 'won'}\n" for row in range(1000)))
    assert compare(*versus, *by) == 3
    because = last_json(capsys.readouterr().out)["judged"][2]["verdict"]["because"]
    assert "worst segment, group lost" in because


def losing_contexts(runs: dict[str, Path]) -> set[int]:
    """Contexts to which the run that learned is worth less than the other."""
    checkpoints = [Checkpoint(runs[name]) for name in ("long", "short")]
    world = open_world("synthetic", None, 0)
    system = system_of(checkpoints[0].config, world)
    learned, other = (trained(world, system, "", checkpoint.policy()).values for checkpoint in checkpoints)
    found = set(np.flatnonzero(learned < other).tolist())
    assert len(found) >= 30
    return found


def test_a_world_is_opened_again_in_its_own_shape(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(runs["smaller"], "--json") in (3, 4)  # 20 contexts are too few for a promotion
    assert last_json(capsys.readouterr().out)["num_contexts"] == 20


def test_runs_that_cannot_be_compared_are_refused(
    runs: dict[str, Path],
    exported: dict[str, Path],
    tmp_path: Path,
    refused: Callable[[int], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    long = runs["long"]
    assert "was trained in another world" in refused(compare(long, runs["elsewhere"]))
    assert "was trained in another world" in refused(compare(long, "--baseline", runs["elsewhere"]))
    assert "candidates 20" in refused(compare(long, runs["of-20"]))
    assert "holds no checkpoint" in refused(compare(tmp_path))
    assert f"run ({tmp_path / 'gone'}) is not there" in refused(compare(tmp_path / "gone"))
    assert "is a bundle: name the run" in refused(compare(exported["long"]))
    assert "is a bundle: name the run" in refused(compare(long, "--baseline", exported["long"].parent))
    assert "CANDIDATE" in refused(compare())
    assert "slate (30) exceeds candidates (10)" in refused(compare(long, "--slate", "30"))
    assert "candidates (1001) exceeds" in refused(compare(long, "--candidates", "1001"))
    assert "bundle (1 given) must be one for each candidate (2)" in refused(compare(long, long, "--bundle", long))
    assert f"bundle ({long / 'gone'}) is not there" in refused(compare(long, "--bundle", long / "gone"))
    assert f"bundle ({long}): no bundle" in refused(compare(long, "--bundle", long))
    assert "bundle of another world" in refused(compare(runs["smaller"], "--bundle", exported["long"]))
    assert "needs --by" in refused(compare(long, "--segments", tmp_path / "x.csv"))
    assert "by (age) must be a column" in refused(compare(long, "--by", "age"))
    assert "margin (-1)" in refused(compare(long, "--margin", "-1"))
    bundles = ("--bundle", exported["long"], "--bundle", exported["short"])
    assert compare(long, runs["of-20"], "--candidates", "15", *bundles, "--json") == 0
    assert last_json(capsys.readouterr().out)["system"]["candidates"] == 15


@pytest.mark.parametrize("name", ["checkpoint.json", "policy.safetensors"])
def test_a_truncated_checkpoint_is_refused(
    runs: dict[str, Path], tmp_path: Path, refused: Callable[[int], str], name: str
) -> None:
    copy = shutil.copytree(Checkpoint(runs["short"]).directory, tmp_path / "00000001")
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    assert name in refused(compare(runs["long"], "--baseline", copy))


def test_a_truncated_bundle_is_refused(
    runs: dict[str, Path], exported: dict[str, Path], tmp_path: Path, refused: Callable[[int], str]
) -> None:
    copy = shutil.copytree(exported["long"], tmp_path / "1")
    content = (copy / "items.faiss").read_bytes()
    (copy / "items.faiss").write_bytes(content[: len(content) // 2])
    assert "items.faiss has" in refused(compare(runs["long"], "--bundle", copy))
