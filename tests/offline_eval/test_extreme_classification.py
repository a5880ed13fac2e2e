"""The extreme-classification repository's sparse format, on small files of that form."""

import json
from pathlib import Path

import pytest

from esr_trainer.command_line import UsageError, main
from offline_eval.__main__ import OfflineEval
from offline_eval.procedures.extreme_classification import FEATURES, extreme_classification

SMALL = "3 4 5\n0,3 0:0.5 2:1.5\n 1:1\n4\n"


def written(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "points.txt"
    path.write_text(content)
    return path


def test_labels_and_features_are_those_of_the_lines(tmp_path: Path) -> None:
    labelled = extreme_classification(written(tmp_path, SMALL))
    assert labelled.world.expected_reward.tolist() == [[1, 0, 0, 1, 0], [0] * 5, [0, 0, 0, 0, 1]]
    assert labelled.contexts.bags["feature"].tolist() == [[2, 0], [1, -1], [-1, -1]], "the highest value first"
    assert len(labelled.contexts.vocabularies["feature"]) == 4
    assert labelled.cuts == (1,)


def test_a_point_keeps_the_features_of_the_highest_value(tmp_path: Path) -> None:
    pairs = " ".join(f"{feature}:{feature % 7 + feature / 1000}" for feature in range(300))
    bag = extreme_classification(written(tmp_path, f"1 300 1\n0 {pairs}\n")).contexts.bags["feature"]
    assert bag.shape == (1, FEATURES)
    assert {feature % 7 for feature in bag[0].tolist()} == {6, 5, 4}, "42 or 43 of each"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "the header '' is not num_points num_features num_labels"),
        ("3 4\n", "the header '3 4' is not num_points num_features num_labels"),
        ("1 4 5\n0 1:x\n", "line 2: could not convert string to float: 'x'"),
        ("1 4 5\n0 1\n", "line 2: "),
        ("1 4 5\n1:0.5 2:0.5\n", "line 2: 1:0.5 stands where the labels"),
        ("1 4 5\n5 1:1\n", "line 2: label 5 is not among the header's 5"),
        ("1 4 5\n0 4:1\n", "line 2: feature 4 is not among the header's 4"),
        ("2 4 5\n0 1:1\n", "1 lines of 2 points of the header"),
        ("1 4 5\n0 1:1\n1 1:1\n", "more lines than the 1 points of the header"),
        ("1000000 4 1000000\n", "more than 250,000,000 cells"),
    ],
)
def test_files_of_another_form_are_refused_in_one_line(tmp_path: Path, content: str, complaint: str) -> None:
    with pytest.raises(UsageError) as refused:
        extreme_classification(written(tmp_path, content))
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_procedure_gives_precision_at_1_of_one_and_two_stages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """300 points of 40 labels: a point has the ten labels of its group of four, which a word tells."""
    owned = [",".join(str(label) for label in range(row % 4, 40, 4)) for row in range(300)]
    lines = [f"{owned[row]} {row % 4}:1 {10 + row % 7}:0.1" for row in range(300)]
    path = written(tmp_path, "\n".join(["300 17 40", *lines]) + "\n")
    options = ["--world", "xmc", "--data", str(path), "--results", str(tmp_path), "--budget", "smoke", "--json"]
    assert main(OfflineEval, "python -m offline_eval", ["ma2020", *options]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    policies = result["policies"]
    measures = [f"{stage} {name}@1" for stage in ("one-stage", "two-stage") for name in ("precision", "recall", "ndcg")]
    for found in policies.values():
        assert list(found) == measures
    chance = policies["random list"]["one-stage precision@1"]["mean"]
    assert chance == pytest.approx(0.25, abs=0.06)
    assert policies["ranker alone"]["one-stage precision@1"]["mean"] > 2 * chance, "words tell the group"

    assert main(OfflineEval, "python -m offline_eval", ["reproduce", "ma2020", *options]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result, "from the runs that are kept"


def test_fewer_labels_than_candidates_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--world", "xmc", "--data", str(written(tmp_path, SMALL)), "--results", str(tmp_path)]
    assert main(OfflineEval, "python -m offline_eval", ["ma2020", *options]) == 2
    assert capsys.readouterr().err.endswith("points.txt): 5 items are fewer than 30 candidates\n")
