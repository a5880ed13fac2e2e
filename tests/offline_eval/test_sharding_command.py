"""What a run under torchrun costs and is worth, as the command measures it."""

import json
from pathlib import Path

import pytest

from esr_trainer.placement import KINDS
from offline_eval.reproduce.sharded_steps import ESTIMATORS, StepCost
from tests.conftest import last_json, run_module


@pytest.mark.slow
def test_a_row_per_sharding_whose_messages_are_what_the_device_carried(tmp_path: Path) -> None:
    options = ["--seeds", "1", "--steps", "3", "--sizes", "300", "--repeats", "3", "--json", "--out"]
    done = run_module("offline_eval", "sharding", *options, tmp_path)
    assert done.returncode == 0, done.stderr
    result = last_json(done.stdout)
    assert result["rows"] == json.loads((tmp_path / "sharding.json").read_text())["rows"]
    rows = [StepCost(**row) for row in result["rows"]]
    assert len(rows) == len(ESTIMATORS) * (1 + len(KINDS) + 1 + 1), "full, then sampled"
    for row in rows:
        assert row.milliseconds > 0
        assert (row.processes > 1) == (row.bytes_computed > 0)
        assert row.bytes_measured >= 0.95 * row.bytes_computed, "others may send meanwhile"
    assert set(result["values"][0]) == {"seed", "one_process", "torchrun"}
