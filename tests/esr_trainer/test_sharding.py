"""Runs under torchrun: the same run whatever the number of processes and wherever the rows are."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from esr_trainer.__main__ import command_line
from esr_trainer.checkpoint import Checkpoint, checkpoints
from esr_trainer.command_line import UsageError
from esr_trainer.sharded_run import check_items, sharding_of
from serving import Retriever
from serving.export import export
from tests.torchrun import ended, torchrun

SMALL = "--environment synthetic --contexts 40 --items 61 --candidates 6"
RUNS = {
    "top1": "--sharding row-wise --experts 2 --batch 15",
    "ca-poisson": "--sharding table-wise --experts 3 --optimizer adagrad --learning-rate 0.1",
    "v": "--sharding data-parallel --experts 2 --variance-reduction baseline",
    "v-swr": "--sharding auto --experts 1 --batch 16 --variance-reduction grpo --slate 2 --lsr noisy",
    "ca": "--sharding row-wise --experts 4 --slate 2 --lsr noisy",
    "ca-heads": "--sharding row-wise --experts 3 --batch 16",
}
"""By estimator."""

ELSEWHERE = dict(zip(RUNS, ("auto", "data-parallel", "table-wise", "row-wise", "table-wise", "auto"), strict=True))
"""Another sharding of each."""


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a command as the only process of a torchrun."""
    as_only_process(monkeypatch)
    return command_line


def as_only_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torchrun would set."""
    place = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}  # any free port
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))


def arguments(out: Path, estimator: str, steps: int, *more: str) -> list[str]:
    fixed = ["--steps", str(steps), "--evaluate-every", "4", "--out", str(out)]
    return [*f"{SMALL} --estimator {estimator} {RUNS[estimator]}".split(), *fixed, *more]


def same_up_to_rounding(one: Path, other: Path) -> None:
    first, second = Checkpoint(one), Checkpoint(other)
    assert first.description.step == second.description.step
    assert first.description.metrics == pytest.approx(second.description.metrics, rel=1e-4, abs=1e-5)
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
    files = Checkpoint(tmp_path / "top1 of 2").description.files
    assert not [name for name in files if Path(name).suffix not in {".json", ".npz", ".safetensors"}]
    metrics = [json.loads(line) for line in (tmp_path / "top1 of 2" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [4, 8]


@pytest.mark.parametrize(
    ("options", "says"),
    [
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
    for num_items in (4, 7):
        check_items(num_items)
    with pytest.raises(UsageError, match="torchrun's 4 processes are too many for 6 items"):
        check_items(6)  # blocks of 2, 2, 2 and 0


def test_a_sampled_catalogue_is_shared_out_by_rows() -> None:
    assert [sharding_of(name, is_sampled=True) for name in ("auto", "row-wise")] == ["row-wise"] * 2
    assert sharding_of("table-wise", is_sampled=False) == "table-wise"
    with pytest.raises(UsageError, match=r"sharding \(data-parallel\): a sampled catalogue is shared out row-wise"):
        sharding_of("data-parallel", is_sampled=True)


@pytest.mark.slow
def test_three_processes_make_the_run_of_one_wherever_the_rows_are(tmp_path: Path, alone: Callable[..., int]) -> None:
    three = [json.dumps(arguments(tmp_path / f"{name} of 3", name, 8, "--sharding", ELSEWHERE[name])) for name in RUNS]
    ended(torchrun(3, "tests.esr_trainer.sharded_runs", *three))
    for name in RUNS:
        assert alone(arguments(tmp_path / f"{name} of 1", name, 8)) == 0
        same_up_to_rounding(tmp_path / f"{name} of 1", tmp_path / f"{name} of 3")


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path, alone: Callable[..., int]) -> None:
    first = [json.dumps(arguments(tmp_path / name, name, 4)) for name in RUNS]
    ended(torchrun(2, "tests.esr_trainer.sharded_runs", *first))
    for name in RUNS:
        assert alone(arguments(tmp_path / name, name, 8)) == 0
    last = [json.dumps(arguments(tmp_path / name, name, 12, "--sharding", ELSEWHERE[name])) for name in RUNS]
    ended(torchrun(2, "tests.esr_trainer.sharded_runs", *last))
    for name in RUNS:
        assert alone(arguments(tmp_path / f"{name} at once", name, 12)) == 0
        same_up_to_rounding(tmp_path / f"{name} at once", tmp_path / name)
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [4, 8, 12]
    export(tmp_path / "top1", tmp_path / "bundles")  # publishes only if what is served is what was trained
    assert len(Retriever.open(tmp_path / "bundles").retrieve("3", 6).item_ids) == 6


@pytest.mark.slow
def test_one_process_and_torchrun_take_up_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, name = tmp_path / "run", "top1"
    assert command_line(arguments(run, name, 4)) == 0
    before, moments = Checkpoint(run).policy().state_dict(), Checkpoint(run).optimizer_state()
    as_only_process(monkeypatch)
    assert command_line(arguments(run, name, 5)) == 0
    assert Checkpoint(run).is_in_pieces
    later = Checkpoint(run).optimizer_state()
    assert later.keys() == moments.keys()
    for key in (key for key in later if key.endswith("exp_avg_sq")):
        assert (later[key] >= 0.998 * moments[key]).all(), "Adam goes on from what it had"
    for key, table in Checkpoint(run).policy().state_dict().items():
        assert 0 < (table - before[key]).abs().max() < 0.05, "a step further, not begun anew"
    monkeypatch.delenv("RANK")
    assert command_line(arguments(run, name, 9)) == 0
    assert Checkpoint(run).description.step == 9
    assert not Checkpoint(run).is_in_pieces


def test_what_several_processes_wrote_is_adapted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, more = tmp_path / "run", ["--candidates", "6", "--relevance.relevant-above", "5"]
    as_only_process(monkeypatch)
    assert command_line(arguments(run, "top1", 2)) == 0
    monkeypatch.delenv("RANK")
    adapt = ["--estimator", "pg-ret", "--init", str(run), *more, "--steps", "2", "--out", str(tmp_path / "adapted")]
    assert command_line(adapt) == 0
    own, others = Checkpoint(tmp_path / "adapted").policy(), Checkpoint(run).policy()
    assert own.item_tower().equal(others.item_tower())
    assert not own.context_tower().equal(others.context_tower())


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_the_run_ends_as_if_nothing_had_happened(
    tmp_path: Path, alone: Callable[..., int]
) -> None:
    options = [*f"{SMALL} --steps 120 --checkpoint-every 10 --evaluate-every 60 --out".split(), str(tmp_path / "run")]
    launch = torchrun(2, "esr_trainer", *options, options=("--max-restarts=1",))
    while launch.poll() is None and not checkpoints(tmp_path / "run"):
        time.sleep(0.01)
    os.kill(process_of_rank(1, launch.pid), signal.SIGKILL)
    _, err = ended(launch)
    assert "resumed at step" in err
    assert alone([*options[:-1], str(tmp_path / "whole")]) == 0
    same_up_to_rounding(tmp_path / "whole", tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob(".*")), "nothing is left unfinished"


def process_of_rank(rank: int, launcher: int) -> int:
    """The process that torchrun started for a rank."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and f"RANK={rank}" in (place / "environ").read_text().split("\0"):
                return int(place.name)
    raise AssertionError(f"no process of rank {rank}")
