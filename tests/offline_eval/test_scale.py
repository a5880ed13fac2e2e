import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from esr_trainer.command_line import main
from offline_eval.__main__ import OfflineEval
from offline_eval.reproduce.attained import Peaks, work_of
from offline_eval.reproduce.scale import ScaleTiming, scale_grid, settings, trainer_in, world_on
from tests.conftest import ROOT, last_json

PEAKS = Peaks(flops=50e9, moved=10e9)


def test_both_kinds_are_timed_and_their_memory_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["runtime", "--scale", "--sizes", "[300]", "--repeats", "1", "--out", str(tmp_path), "--json"]
    assert main(OfflineEval, "python -m offline_eval", options) == 0
    out = capsys.readouterr().out
    assert "A training step over the size of the catalogue" in out
    result = last_json(out)
    rows = [ScaleTiming(**row) for row in result["rows"]]
    assert [(row.num_items, row.catalogue) for row in rows] == [(300, "full"), (300, "sampled")]
    assert all(row.milliseconds > 0 and row.processor_milliseconds > 0 for row in rows)
    assert all(0 < row.beyond_tables_gb < 0.5 for row in rows)
    assert all((row.index_seconds > 0) == (row.catalogue == "sampled") for row in rows)
    peaks = Peaks(**result["peaks"])
    full, flops = rows[0], 6 * 128 * 300 * 64
    assert full.gemm_share == pytest.approx(flops / (1e-3 * full.processor_milliseconds) / peaks.flops)
    assert all(row.copy_share is not None and row.copy_share > 0 for row in rows)
    assert {"scale.json", "scale.png", "scale.svg"} == {path.name for path in tmp_path.iterdir()}


def test_work_is_counted_by_hand() -> None:
    """Full: 1000 + 300 rows of 64 numbers and Adam's two moments. Sampled: one moment and a step of the rows used."""
    full, sampled = (trainer_in(world_on("cpu", 300), settings(kind, 300)) for kind in ("full", "sampled"))
    for trainer in (full, sampled):
        trainer.advance()
    used = [len(table.grad.coalesce().indices()[0]) for table in sampled.policy.parameters() if table.grad is not None]
    assert 0 < used[0] <= 128
    assert work_of(full) == (6 * 128 * 300 * 64, 2 * 1300 * 64 * 4 * 3)
    columns = type(sampled).draw_losses([sampled]).logits.shape[2]
    assert work_of(sampled) == pytest.approx((6 * 128 * columns * 64, 2 * sum(used) * (64 * 4 * 2 + 4)))


def test_the_ratio_is_of_processor_times() -> None:
    rows = [
        ScaleTiming(1000, "full", 9.0, 8.0, 0.5, 0.0, 0.5, 0.25),
        ScaleTiming(1000, "sampled", 6.0, 2.0, 0.25, 1.5, 0.1, 0.02),
    ]
    line = ["1,000", "9 (8)", "6 (2)", "4.0", "0.50", "0.25", "1.5", "50, 25", "10, 2"]
    assert list(scale_grid(rows, PEAKS).rows[0]) == line
    assert list(scale_grid(rows[:1], PEAKS).rows[0]) == ["1,000", "9 (8)", "", "", "0.50", "", "", "50, 25", ""]


def test_older_results_are_read() -> None:
    old = ScaleTiming(1000, "full", 9.0, 8.0, 0.5, 0.0)
    assert scale_grid([old], PEAKS).rows[0][-2] == ""
    result = json.loads((ROOT / "offline_eval" / "results" / "scale.json").read_text())
    assert len(scale_grid([ScaleTiming(**row) for row in result["rows"]], PEAKS).rows) == 3


def test_a_device_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refused: Callable[[int], str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = ["runtime", "--device", "cuda", "--out", str(tmp_path)]
    assert "device (cuda): this machine" in refused(main(OfflineEval, "offline_eval", [*options, "--scale"]))
    assert "device (cuda) is for --scale" in refused(main(OfflineEval, "offline_eval", options))
    assert not list(tmp_path.iterdir())
