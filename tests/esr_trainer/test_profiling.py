"""A profile shows some steps and changes none."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from esr_trainer.__main__ import command_line
from esr_trainer.checkpoint import Checkpoint
from esr_trainer.profiling import PROFILED, SKIPPED, TRACE

SMALL = ["--environment", "synthetic", "--candidates", "5", "--experts", "1", "--batch", "16"]


def test_a_profile_is_written_and_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, options in (("plain", []), ("profiled", ["--profile"])):
        command = [*SMALL, "--steps", str(SKIPPED + PROFILED + 3), *options, "--out", str(tmp_path / name)]
        assert command_line(command) == 0
    events = json.loads((tmp_path / "profiled" / TRACE).read_text())["traceEvents"]
    steps = {event["name"] for event in events if event["name"].startswith("ProfilerStep#")}
    assert len(steps) == PROFILED
    assert any(event["name"] == "aten::topk" for event in events)
    out, err = capsys.readouterr()
    assert "aten::topk" in err
    assert "aten::topk" not in out
    assert not (tmp_path / "plain" / TRACE).exists()
    plain, profiled = (
        load_file(Checkpoint(tmp_path / name).directory / "policy.safetensors") for name in ("plain", "profiled")
    )
    assert all(torch.equal(table, profiled[name]) for name, table in plain.items())


def test_a_run_too_short_to_profile_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert command_line([*SMALL, "--steps", str(SKIPPED), "--profile", "--out", str(out)]) == 0
    assert "nothing written" in capsys.readouterr().err
    assert not (out / TRACE).exists()
