"""A judge in a process of its own that misbehaves, over real gRPC."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from esr_trainer import relevance_judge
from esr_trainer.command_line import UsageError
from tests.conftest import ROOT
from tests.esr_trainer.test_relevance_judge import EXPECTED, PAIRS, kept, oracle


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relevance_judge, "FIRST_WAIT", 0.01)


@contextmanager
def judging(way: str, folder: Path, *tls: Path) -> Iterator[str]:
    """A judge of one way; its address."""
    command = [sys.executable, "-m", "tests.grpc_judge_server", way, folder / "calls", *tls]
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        yield f"localhost:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.communicate()


def calls(folder: Path) -> list[list[Any]]:
    """The pairs of each call so far."""
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def test_pairs_are_sent_as_ids_and_texts_and_never_asked_again(tmp_path: Path) -> None:
    with judging("good", tmp_path) as place:
        for _ in range(2):
            again = oracle(f"grpc://{place}", tmp_path, judge_budget=1)
            assert again.relevance(*PAIRS).tolist() == EXPECTED
    ((*pairs,),) = calls(tmp_path)
    assert len(pairs) == 5
    assert pairs[1] == [["0", {"title": "no. 0"}], ["3", {"title": "no. 3"}]]


@pytest.mark.parametrize("way", ["flaky", "flaky-length"])
def test_a_passing_failure_is_tried_again(way: str, tmp_path: Path) -> None:
    with judging(way, tmp_path) as place:
        assert oracle(f"grpc://{place}", tmp_path, judge_batch=2).relevance(*PAIRS).tolist() == EXPECTED
    assert len(calls(tmp_path)) == 6, "three batches, each twice"


@pytest.mark.parametrize(
    ("way", "count", "rule"),
    [
        ("outside", 3, "gave 7: relevance must be from 0 to 1"),
        ("few", 3, r"gave an answer of shape \(4,\) for 5 pairs"),
        ("slow", 3, "answered with DEADLINE_EXCEEDED"),
        ("crash", 3, "answered with UNKNOWN"),
        ("token", 1, "answered with UNAUTHENTICATED"),
    ],
)
def test_a_failure_that_stays_is_one_line_and_keeps_nothing(way: str, count: int, rule: str, tmp_path: Path) -> None:
    with judging(way, tmp_path) as place:
        with pytest.raises(UsageError, match=rule):
            oracle(f"grpc://{place}", tmp_path, judge_attempts=3, judge_seconds=1).relevance(*PAIRS)
        assert len(calls(tmp_path)) == count
    assert kept(tmp_path) == 0


def test_nobody_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="answered with UNAVAILABLE"):
        oracle("grpc://127.0.0.1:1", tmp_path, judge_attempts=1).relevance(*PAIRS)


def test_a_spent_budget_refuses_and_keeps_what_was_paid_for(tmp_path: Path) -> None:
    pairs = (torch.arange(10), torch.arange(10))
    with judging("good", tmp_path) as place:
        with pytest.raises(UsageError, match="the budget of 4 calls is spent"):
            oracle(f"grpc://{place}", tmp_path, judge_budget=4, judge_batch=1).relevance(*pairs)
        assert len(calls(tmp_path)) == kept(tmp_path) == 4


def test_the_token_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    with judging("token", tmp_path) as place:
        answers = oracle(f"grpc://{place}", tmp_path, judge_token_file=tmp_path / "token").relevance(*PAIRS)
    assert answers.tolist() == EXPECTED


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("grpc://", "must be of grpc or grpcs, and name a host"),
        ("grpcs://judge:secret@host:1", "may hold no password"),
    ],
)
def test_a_url_that_names_nobody_or_says_a_password_is_refused(url: str, rule: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rule):
        oracle(url, tmp_path)


def test_over_tls_the_judge_is_who_it_says(tmp_path: Path) -> None:
    """Who trusts the certificate asks in a process of its own, since gRPC reads its roots once."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    asking = (
        "import sys; from esr_trainer.pairs import Described, Pair; from esr_trainer.relevance_judge_grpc import *\n"
        "print(GrpcJudge(sys.argv[1], 1, 1, 10.0, None)([Pair(Described('0', {}), Described('2', {}))]))"
    )
    with judging("good", tmp_path, key, certificate) as place:
        asked = subprocess.run(
            [sys.executable, "-c", asking, f"grpcs://{place}"],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={**os.environ, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(certificate)},
        )
        assert asked.stdout == "[0.75]\n"
        with pytest.raises(UsageError, match="answered with UNAVAILABLE"):
            oracle(f"grpcs://{place}", tmp_path, judge_attempts=1).relevance(*PAIRS)
