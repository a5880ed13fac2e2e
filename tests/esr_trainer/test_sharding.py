"""Runs under torchrun: the same run whatever the number of processes and wherever the rows are."""

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from esr_trainer.__main__ import command_line
from esr_trainer.checkpoint import Checkpoint
from esr_trainer.command_line import UsageError
from esr_trainer.sharded_run import check_enough_items
from tests.torchrun import ended, torchrun

SMALL = "--environment synthetic --contexts 40 --items 61 --candidates 6 --evaluate-every 4"
RUNS = {
    "row-wise": "--estimator top1 --experts 2 --batch 15",
    "table-wise": "--estimator ca-poisson --experts 3 --optimizer adagrad --learning-rate 0.1",
    "data-parallel": "--estimator v --experts 2 --variance-reduction baseline",
    "auto": "--estimator v-swr --experts 1 --batch 16 --variance-reduction grpo --slate 2 --lsr noisy",
}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a command as the only process of a torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    return command_line


def arguments(out: Path, sharding: str, steps: int, *more: str) -> list[str]:
    fixed = ["--steps", str(steps), "--sharding", sharding, "--out", str(out)]
    return [*f"{SMALL} {RUNS[sharding]}".split(), *fixed, *more]


def same_up_to_rounding(one: Path, other: Path) -> None:
    first, second = Checkpoint(one), Checkpoint(other)
    assert first.description.step == second.description.step
    value, same_value = (checkpoint.description.metrics["policy_value"] for checkpoint in (first, second))
    assert value == pytest.approx(same_value, abs=1e-5)
    assert first.state()["generator"].equal(second.state()["generator"]), "the same draws"
    for tensors, others in (
        (first.policy().state_dict(), second.policy().state_dict()),
        (first.optimizer_state(), second.optimizer_state()),
        (first.state(), second.state()),
    ):
        assert tensors.keys() == others.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, others[name], rtol=1e-4, atol=1e-5, msg=name)


def test_two_processes_make_the_run_of_one(tmp_path: Path, alone: Callable[..., int]) -> None:
    two = [json.dumps(arguments(tmp_path / f"{name} of 2", name, 8, "--json")) for name in RUNS]
    out, err = ended(torchrun(2, "tests.esr_trainer.sharded_runs", *two))
    assert [out.count(said) for said in ("after training", '{"checkpoint"')] == [len(RUNS)] * 2, "the first prints"
    assert err.count("world: synthetic") == len(RUNS), "and notes"
    for name in RUNS:
        assert alone(arguments(tmp_path / f"{name} of 1", name, 8)) == 0
        same_up_to_rounding(tmp_path / f"{name} of 1", tmp_path / f"{name} of 2")
    files = Checkpoint(tmp_path / "row-wise of 2").description.files
    assert not [name for name in files if Path(name).suffix not in {".json", ".npz", ".safetensors"}]
    metrics = [json.loads(line) for line in (tmp_path / "row-wise of 2" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [4, 8]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--estimator ca", "estimator (ca) runs in one process"),
        ("--estimator ca-heads", "estimator (ca-heads) runs in one process"),
        ("--seeds 2", "seeds (2) train side by side in one process"),
        ("--context-features pyproject.toml", "context_features (pyproject.toml) are looked up in one process"),
        ("--from-log feedback.db --estimator ips", "estimator (ips) runs in one process"),
        ("--profile", "profile (True) watches one process"),
    ],
)
def test_what_has_no_sharded_form_is_refused_by_each_process_alone(
    options: str, says: str, monkeypatch: pytest.MonkeyPatch, refused: Callable[[int], str]
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    assert says in refused(command_line(options.split()))


def test_a_restart_without_a_named_directory_is_refused(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[[int], str]
) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RESTART_COUNT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    assert "out must be named" in refused(command_line([]))


def test_more_processes_than_have_items_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    check_enough_items(7)
    check_enough_items(4)
    with pytest.raises(UsageError, match="torchrun's 4 processes are too many for 6 items"):
        check_enough_items(6)  # blocks of 2, 2, 2 and 0
