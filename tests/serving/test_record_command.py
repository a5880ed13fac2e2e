"""The loop by hand: retrieve --seed --json, record, learn from the log; against a real server."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from esr_trainer.__main__ import command_line
from esr_trainer.feedback_log import Feedback, read
from tests.conftest import run_module, serving
from tests.serving.test_client_commands import command, result


@pytest.fixture(scope="module")
def recording(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    log = tmp_path_factory.mktemp("log") / "feedback.db"
    with serving(bundles, "--feedback-log", str(log)) as (_, address):
        yield address, log


def drawn(address: str, capsys: pytest.CaptureFixture[str], context: int = 5, seed: int = 3) -> dict[str, Any]:
    return result(capsys, "retrieve", "--context-id", context, "-k", 4, "--seed", seed, "--address", address)


def round_of(log: Path, request_id: str) -> Feedback:
    (found,) = [feedback for feedback in read(str(log)) if feedback.shown.request_id == request_id]
    return found


def test_what_is_piped_from_retrieve_is_in_the_log(recording: tuple[str, Path]) -> None:
    address, log = recording
    asked = run_module("serving", "retrieve", "--context-id", 5, "-k", 4, "--seed", 9, "--json", "--address", address)
    answer = json.loads(asked.stdout.splitlines()[-1])
    best = answer["item_ids"][1]
    done = run_module("serving", "record", "--reward", f"{best}=2.5", "--address", address, input=asked.stdout)
    assert done.returncode == 0, done.stderr
    assert "recorded" in done.stdout
    found = round_of(log, answer["request_id"])
    assert found.shown.mode == "sampled"
    assert found.shown.context_id == "5"
    assert list(found.slate) == answer["item_ids"] == list(found.shown.candidates)
    assert found.rewards == (0.0, 2.5, 0.0, 0.0)
    assert found.lsr_probabilities == (1.0,) * 4
    assert list(found.shown.inclusion_propensities) == answer["inclusion_propensities"]
    assert found.shown.log_probability == answer["log_probability"]


def test_an_answer_is_recorded_once(
    recording: tuple[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    refused: Callable[[int], str],
) -> None:
    address, _ = recording
    answer = drawn(address, capsys)
    (tmp_path / "answer").write_text(json.dumps(answer))
    record = ("record", tmp_path / "answer", "--address", address)
    reward = ("--reward", f"{answer['item_ids'][0]}=1")
    assert result(capsys, *record, *reward)["is_new"] is True
    assert result(capsys, *record, *reward)["is_new"] is False
    assert "ALREADY_EXISTS" in refused(command(*record))


@pytest.mark.parametrize(
    ("rewards", "why"),
    [
        (("7",), "reward (7) must be ITEM=VALUE"),
        (("=1",), "reward (=1) must be ITEM=VALUE"),
        (("7=nan",), "reward (7=nan) must be ITEM=VALUE with a finite number"),
        (("none=1",), "reward (none=1): item none was not shown; shown: a, b"),
        (("a=1", "a=2"), "reward (a=2): item a has a reward already, 1"),
    ],
)
def test_rewards_that_cannot_be_are_one_line(
    rewards: tuple[str, ...], why: str, tmp_path: Path, refused: Callable[[int], str]
) -> None:
    (tmp_path / "answer").write_text(json.dumps(ANSWER))
    options = [part for reward in rewards for part in ("--reward", reward)]
    assert why in refused(command("record", tmp_path / "answer", *options))


ANSWER = {
    "model_id": "model",
    "model_version": 1,
    "request_id": "r",
    "context_id": "5",
    "mode": "greedy",
    "item_ids": ["a", "b"],
    "scores": [1.0, 0.5],
    "experts": [0, 0],
    "inclusion_propensities": [],
    "log_probability": 0.0,
    "slate": [],
    "slate_probabilities": [],
}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "answer (-) must hold what `retrieve --json` printed: no JSON object on its last line"),
        ("table\n", "no JSON object on its last line"),
        (json.dumps(ANSWER | {"mode": "fast"}), "mode (fast): Input should be 'greedy' or 'sampled'"),
        (json.dumps({key: ANSWER[key] for key in ANSWER if key != "item_ids"}), "item_ids is required"),
        (json.dumps(ANSWER | {"slate": [2]}), "slate (2) must be below its 2 items"),
    ],
)
def test_what_is_no_answer_is_one_line(
    content: str, why: str, monkeypatch: pytest.MonkeyPatch, refused: Callable[[int], str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(content))
    assert why in refused(command("record"))


def test_a_log_of_such_rounds_is_learned_from(
    bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log of its own: which rounds are held out depends on all that are there, and one must have a reward."""
    log = tmp_path / "feedback.db"
    with serving(bundles, "--feedback-log", str(log)) as (_, address):
        for number in range(12):
            answer = drawn(address, capsys, context=number, seed=number)
            (tmp_path / "answer").write_text(json.dumps(answer))
            rewards = [part for item in answer["item_ids"] for part in ("--reward", f"{item}=1")]
            assert result(capsys, "record", tmp_path / "answer", *rewards, "--address", address)["is_new"]
    options = "--estimator ca-poisson-ips --candidates 4 --slate 2 --steps 2 --batch 8"
    run = tmp_path / "run"
    assert command_line(["--from-log", str(log), *options.split(), "--out", str(run)]) == 0
    assert (run / "metrics.jsonl").is_file()
