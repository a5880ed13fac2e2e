"""The load test itself, on a real server of a stand-in bundle."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from esr_trainer.command_line import UsageError, main
from serving import Retriever
from serving.__main__ import Serving
from serving.errors import ServingError
from tests.conftest import last_json


def command(*arguments: object) -> int:
    return main(Serving, "python -m serving", [*map(str, arguments)], refusals=(UsageError, ServingError))


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stand-in")
    assert command("stand-in", root, "--items", 3000, "--num-candidates", 20, "--index", "ivf") == 0
    return root


def test_a_stand_in_says_what_it_is_and_depends_on_its_context(stand_in: Path) -> None:
    retriever = Retriever.open(stand_in)
    assert retriever.bundle.manifest.model_id == "stand-in-3000-seed-0"
    assert retriever.bundle.manifest.index == "ivf"
    assert retriever.bundle.manifest.recall >= 0.95
    answers = {tuple(retriever.retrieve(str(context), 20).item_ids) for context in range(50)}
    assert len(answers) == 50


def test_more_candidates_than_items_are_refused(tmp_path: Path, refused: Callable[[int], str]) -> None:
    said = refused(command("stand-in", tmp_path / "root", "--items", 50))
    assert said == "error: num_candidates (100) exceeds items (50)"
    assert not (tmp_path / "root").exists()


def test_every_rpc_is_measured_beside_a_no_op(
    stand_in: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--seconds", 0.3, "--repeats", 1, "--callers", 4, "--batch", 5, "--num-candidates", 20)
    out = tmp_path / "loadtest.json"
    assert command("loadtest", stand_in, *options, "--out", out, "--json") == 0
    result = last_json(capsys.readouterr().out)
    assert json.loads(out.read_text()) == result
    rows = {(row["method"], row["loop"]): row for row in result["rows"]}
    names = ("no-op", "Retrieve, greedy", "BatchRetrieve(5), greedy")  # an approximate index cannot sample
    assert set(rows) == {(name, loop) for name in names for loop in ("closed", "open")}
    for row in rows.values():
        assert row["errors"] == 0
        assert row["requests_per_second"] > 0
        assert 0 < row["p50"] <= row["p95"] <= row["p99"]
    batch = rows["BatchRetrieve(5), greedy", "closed"]
    assert batch["users_per_second"] / 5 == pytest.approx(batch["requests_per_second"], rel=0.01)


def test_a_root_that_cannot_be_written_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert command("stand-in", tmp_path / "file" / "root", "--items", 300, "--num-candidates", 20) == 2
    assert f"error: root ({tmp_path}/file/root) cannot be written: Not a directory" in capsys.readouterr().err
