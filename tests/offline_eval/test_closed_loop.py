"""The closed loop, every stage a process of its own."""

import itertools

import pytest

from esr_trainer import feedback_log
from esr_trainer.command_line import main
from offline_eval.__main__ import OfflineEval
from tests.conftest import last_json, run_module

SMALL = ["--contexts", "100", "--items", "200", "--candidates", "10", "--steps", "300", "--json"]


@pytest.mark.slow
def test_the_policy_value_rises_round_after_round(tmp_path):
    out = tmp_path / "loop"
    done = run_module("offline_eval", "closed-loop", "--out", out, "--rounds", "2", "--visits", "4000", *SMALL)
    assert done.returncode == 0, done.stderr
    rounds = last_json(done.stdout)["rounds"]
    assert [one["version"] for one in rounds] == [1, 2, 3]
    assert [one["decision"] for one in rounds] == [None, "promote", "promote"]
    assert all(after["policy_value"] > before["policy_value"] for before, after in itertools.pairwise(rounds))
    # the second round's users were shown what the first round learned
    assert rounds[2]["mean_reward"] > rounds[1]["mean_reward"]
    records = list(feedback_log.read(str(out / "feedback.db")))
    assert len(records) == 8000
    assert {record.shown.model_version for record in records} == {1, 2}


def closed_loop(*arguments):
    """The command in this process; its stages are processes all the same."""
    return main(OfflineEval, "python -m offline_eval", ["closed-loop", *map(str, arguments)])


def test_a_folder_that_is_there_is_refused(tmp_path, refused):
    assert refused(closed_loop("--out", tmp_path)) == f"error: out ({tmp_path}) is there already; name a new folder"


def test_a_stage_that_fails_says_why_in_one_line(tmp_path, refused):
    said = refused(closed_loop("--out", tmp_path / "loop", "--data", tmp_path / "none.npz"))
    assert said.startswith("error: python -m esr_trainer ended with 2: ")
    assert "none.npz" in said
