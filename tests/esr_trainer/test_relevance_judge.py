"""A judge in a process of its own that misbehaves, over real HTTP."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import urllib3

from esr_trainer import relevance_judge
from esr_trainer.command_line import UsageError
from esr_trainer.pairs import Described, Descriptions
from esr_trainer.relevance_options import RelevanceOptions
from esr_trainer.relevance_oracles import RelevanceOracle, open_oracle
from esr_trainer.world import World
from tests.conftest import ROOT

ROWS = tuple(Described(str(row), {"title": f"no. {row}"}) for row in range(10))


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A fresh judge's address; waits are short."""
    monkeypatch.setattr(relevance_judge, "FIRST_WAIT", 0.01)
    command = [sys.executable, "-m", "tests.judge_server"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.communicate()


def oracle(url: str, tmp_path: Path, **options: Any) -> RelevanceOracle:
    grid = torch.zeros(10, 10)
    ids = tuple(row.id for row in ROWS)
    world = World("synthetic", "for a test", ids, ids, grid, grid, grid, "by hand")
    settings = RelevanceOptions(oracle=url, judge_cache=tmp_path / "kept.db", **options)
    return open_oracle(settings, world, Descriptions(ROWS, ROWS))


def said(judge: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(urllib3.request("GET", judge).data)
    return found


def kept(tmp_path: Path) -> int:
    with sqlite3.connect(tmp_path / "kept.db") as connection:
        return int(connection.execute("SELECT count(*) FROM judgements").fetchone()[0])


PAIRS = (torch.tensor([0, 1]), torch.tensor([[2, 3, 5], [3, 4, 3]]))
EXPECTED = [[0.75, 0.25, 0.25], [0.75, 0.25, 0.75]]


def test_pairs_are_sent_as_ids_and_texts_and_asked_once(judge: str, tmp_path: Path) -> None:
    assert oracle(f"{judge}/good", tmp_path).relevance(*PAIRS).tolist() == EXPECTED
    (body,) = said(judge)["calls"]
    pairs = json.loads(body)["pairs"]
    assert len(pairs) == 5
    assert pairs[1] == {
        "context": {"id": "0", "texts": {"title": "no. 0"}},
        "item": {"id": "3", "texts": {"title": "no. 3"}},
    }


def test_what_was_answered_is_never_asked_again(judge: str, tmp_path: Path) -> None:
    oracle(f"{judge}/good", tmp_path).relevance(*PAIRS)
    again = oracle(f"{judge}/good", tmp_path, judge_budget=1)
    assert again.relevance(*PAIRS).tolist() == EXPECTED
    assert len(said(judge)["calls"]) == 1
    again.relevance(torch.tensor([0]), torch.tensor([9]))
    assert len(json.loads(said(judge)["calls"][1])["pairs"]) == 1
    oracle(f"{judge}/other", tmp_path).relevance(*PAIRS)
    assert len(said(judge)["calls"]) == 3, "another judge is another question"


@pytest.mark.parametrize("way", ["flaky", "flaky-garbage", "flaky-length"])
def test_a_passing_failure_is_tried_again(way: str, judge: str, tmp_path: Path) -> None:
    assert oracle(f"{judge}/{way}", tmp_path, judge_batch=2).relevance(*PAIRS).tolist() == EXPECTED
    assert len(said(judge)["calls"]) == 6, "three batches, each twice"


@pytest.mark.parametrize(
    ("way", "calls", "rule"),
    [
        ("outside", 3, "gave 7: relevance must be from 0 to 1"),
        ("nan", 3, "gave nan: relevance must be from 0 to 1"),
        ("words", 3, "answered something else than relevance"),
        ("slow", 3, "cannot be reached: ReadTimeoutError"),
        ("drip", 3, "took too long"),
        ("wrong", 1, "answered with status 404"),
        ("elsewhere", 1, "answered with status 307"),
        ("huge", 1, "answered with more than 1048576 bytes"),
        ("token", 1, "answered with status 401"),
    ],
)
def test_a_failure_that_stays_is_one_line_and_keeps_nothing(
    way: str, calls: int, rule: str, judge: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=rule):
        oracle(f"{judge}/{way}", tmp_path, judge_attempts=3, judge_seconds=0.7).relevance(*PAIRS)
    assert len(said(judge)["calls"]) == calls
    assert kept(tmp_path) == 0


def test_nobody_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be reached: NewConnectionError"):
        oracle("http://127.0.0.1:1/", tmp_path, judge_attempts=1).relevance(*PAIRS)


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_spent_budget_refuses_and_keeps_what_was_paid_for(concurrency: int, judge: str, tmp_path: Path) -> None:
    pairs = (torch.arange(10), torch.arange(10))
    limits = {"judge_budget": 4, "judge_batch": 1, "judge_concurrency": concurrency}
    with pytest.raises(UsageError, match="the budget of 4 calls is spent"):
        oracle(f"{judge}/good", tmp_path, **limits).relevance(*pairs)
    assert len(said(judge)["calls"]) == kept(tmp_path) == 4
    oracle(f"{judge}/good", tmp_path, judge_budget=6, judge_batch=1).relevance(*pairs)
    assert len(said(judge)["calls"]) == 10


def test_attempts_count_as_calls_of_the_budget(judge: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the budget of 3 calls is spent"):
        oracle(f"{judge}/flaky", tmp_path, judge_budget=3, judge_batch=2, judge_concurrency=1).relevance(*PAIRS)
    assert len(said(judge)["calls"]) == 3
    assert kept(tmp_path) == 2, "the second batch had one call of the two that it needs"


def test_a_failed_batch_does_not_lose_the_others(judge: str, tmp_path: Path) -> None:
    pairs = (torch.zeros(10, dtype=torch.int64), torch.arange(10))
    with pytest.raises(UsageError, match="status 503"):
        oracle(f"{judge}/fails-on-9", tmp_path, judge_attempts=2, judge_batch=1).relevance(*pairs)
    assert kept(tmp_path) == 9


def test_batches_are_asked_for_at_the_same_time(judge: str, tmp_path: Path) -> None:
    pairs = (torch.arange(6), torch.arange(6))
    oracle(f"{judge}/together", tmp_path, judge_batch=1, judge_concurrency=3).relevance(*pairs)
    assert 2 <= said(judge)["most"] <= 3


def test_the_token_comes_from_a_file(judge: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    answers = oracle(f"{judge}/token", tmp_path, judge_token_file=tmp_path / "token").relevance(*PAIRS)
    assert answers.tolist() == EXPECTED
    for content in ("", "two\nlines"):
        (tmp_path / "token").write_text(content)
        with pytest.raises(UsageError, match="must hold one line"):
            oracle(f"{judge}/token", tmp_path, judge_token_file=tmp_path / "token")
    with pytest.raises(UsageError, match="cannot be read"):
        oracle(f"{judge}/token", tmp_path, judge_token_file=tmp_path / "none")


def test_a_cache_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "kept.db").write_text("not a database, but long enough to be taken for a file of its own kind" * 20)
    with pytest.raises(UsageError, match=r"judge_cache .* cannot be used: file is not a database"):
        oracle("http://127.0.0.1:1/", tmp_path)
