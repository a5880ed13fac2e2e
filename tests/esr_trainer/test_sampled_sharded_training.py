"""A large catalogue under torchrun: processes that sample their own items draw and teach what one process does."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from esr_trainer.__main__ import command_line
from esr_trainer.checkpoint import Checkpoint, checkpoints
from esr_trainer.table_pieces import read_into, tensors_in
from tests.conftest import last_json
from tests.esr_trainer.test_sharding import process_of_rank
from tests.torchrun import ended, torchrun

SMALL = "--environment synthetic --items 601 --contexts 50 --candidates 10 --experts 2 --batch 16 --checkpoint-every 14"
SAMPLED = [
    *SMALL.split(),
    *["--catalogue", "sampled", "--catalogue-head", "32", "--catalogue-tail", "60", "--index-every", "12"],
]


def options(out: Path, steps: int, *more: str) -> list[str]:
    return [*SAMPLED, "--steps", str(steps), "--out", str(out), *more]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes made runs."""
    return tmp_path_factory.mktemp("of two")


@pytest.fixture(scope="module")
def found(place: Path) -> dict[str, Any]:
    """What two processes found, after a run that stopped at step 27 and one that did not."""
    runs = [options(place / "whole", 40), options(place / "halves", 27), options(place / "halves", 40)]
    return last_json(ended(torchrun(2, "tests.esr_trainer.sampled_shard_checks", *map(json.dumps, runs)))[0])


def test_a_tail_of_all_items_gives_the_formulas_of_one_process_in_float64(found: dict[str, Any]) -> None:
    assert len(found["errors"]) == 7 * 2 * 2
    assert max(found["errors"].values()) < 1e-11, found["errors"]


def test_ordered_candidates_have_the_law_of_the_whole_catalogue(found: dict[str, Any]) -> None:
    """By chi-square, 12 items, a head of 3; not so where one process leaves its tail out."""
    assert min(found["fits"]) > 0.01
    assert max(found["without a tail"]) < 1e-12


def test_normalisers_are_unbiased(found: dict[str, Any]) -> None:
    assert len(found["bias"]) == 8
    assert max(map(abs, found["bias"])) < 4
    assert any(found["bias"])


def test_a_step_touches_the_rows_that_it_uses_and_no_others(found: dict[str, Any]) -> None:
    """3 contexts; on each process 3 heads of 4 and 3 times 5 candidates at most, and a tail of 10."""
    for table, most in (("context", 3), ("item", 3 * (2 * 4 + 5) + 2 * 10)):
        used, moved = found["touched"][table]
        assert 0 < used == moved <= most


def test_the_policy_that_is_valued_is_the_greedy_one(found: dict[str, Any]) -> None:
    assert found["greedy"] == [True, True]


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    directory = Checkpoint(run).directory
    tensors = {name: torch.empty_like(one, device="cpu") for name, one in tensors_in(directory).items()}
    read_into(directory, tensors)
    return tensors


def same_bits(one: Path, other: Path) -> None:
    first, second = tensors_of(one), tensors_of(other)
    assert first.keys() == second.keys()
    assert {"generator", "1_of_2_index_1"} < first.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert Checkpoint(one).description.metrics == Checkpoint(other).description.metrics


@pytest.mark.usefixtures("found")
def test_a_resumed_run_is_the_run_that_never_stopped_and_one_process_goes_on_from_it(place: Path) -> None:
    """It was stopped while an index that was begun at step 24 waited for step 36."""
    same_bits(place / "whole", place / "halves")
    metrics = Checkpoint(place / "whole").description.metrics
    assert metrics["policy_value"] > metrics["initial_policy_value"] + 0.1
    assert command_line(options(place / "halves", 44)) == 0
    assert Checkpoint(place / "halves").description.step == 44
    assert not Checkpoint(place / "halves").is_in_pieces


@pytest.mark.slow
def test_three_processes_take_up_what_one_began_and_one_what_they_left(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert command_line(options(run, 10)) == 0
    before = Checkpoint(run).policy().state_dict()
    ended(torchrun(3, "esr_trainer", *options(run, 11)))
    assert Checkpoint(run).is_in_pieces
    for name, table in Checkpoint(run).policy().state_dict().items():
        assert 0 < (table - before[name]).abs().max() < 0.05, "a step further, not begun anew"
    assert command_line(options(run, 12)) == 0
    assert Checkpoint(run).description.step == 12


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_the_run_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    launch = torchrun(2, "esr_trainer", *options(tmp_path / "run", 60), options=("--max-restarts=1",))
    while launch.poll() is None and not checkpoints(tmp_path / "run"):
        time.sleep(0.01)
    os.kill(process_of_rank(1, launch.pid), signal.SIGKILL)
    _, err = ended(launch)
    assert "resumed at step" in err
    ended(torchrun(2, "esr_trainer", *options(tmp_path / "whole", 60)))
    same_bits(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["top1", "ca"])
def test_two_processes_learn_what_one_does(estimator: str, tmp_path: Path) -> None:
    """3,000 items of which a tenth are a tail, 300 steps: within 2 % of one process's policy value."""
    shape = "--environment synthetic --items 3000 --contexts 300 --candidates 20 --experts 1 --catalogue sampled"
    sizes = "--catalogue-tail 300 --catalogue-head 64 --index-every 50 --steps 300"
    given = [*shape.split(), *sizes.split(), "--estimator", estimator, "--out"]
    assert command_line([*given, str(tmp_path / "one")]) == 0
    ended(torchrun(2, "esr_trainer", *given, tmp_path / "two"))
    one, two = (Checkpoint(tmp_path / name).description.metrics for name in ("one", "two"))
    assert two["policy_value"] > two["initial_policy_value"] + 1
    assert two["policy_value"] == pytest.approx(one["policy_value"], rel=0.02)
