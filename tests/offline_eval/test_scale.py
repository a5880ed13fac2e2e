from pathlib import Path

import pytest

from esr_trainer.command_line import main
from offline_eval.__main__ import OfflineEval
from offline_eval.reproduce.scale import ScaleTiming, scale_grid
from tests.conftest import last_json


def test_both_kinds_are_timed_and_their_memory_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["runtime", "--scale", "--sizes", "[300]", "--repeats", "1", "--out", str(tmp_path), "--json"]
    assert main(OfflineEval, "python -m offline_eval", options) == 0
    out = capsys.readouterr().out
    assert "A training step over the size of the catalogue" in out
    rows = [ScaleTiming(**row) for row in last_json(out)["rows"]]
    assert [(row.num_items, row.catalogue) for row in rows] == [(300, "full"), (300, "sampled")]
    assert all(row.milliseconds > 0 and row.processor_milliseconds > 0 for row in rows)
    assert all(0 < row.beyond_tables_gb < 0.5 for row in rows)
    assert all((row.index_seconds > 0) == (row.catalogue == "sampled") for row in rows)
    assert {"scale.json", "scale.png", "scale.svg"} == {path.name for path in tmp_path.iterdir()}


def test_the_ratio_is_of_processor_times() -> None:
    rows = [ScaleTiming(1000, "full", 9.0, 8.0, 0.5, 0.0), ScaleTiming(1000, "sampled", 6.0, 2.0, 0.25, 1.5)]
    assert list(scale_grid(rows).rows[0]) == ["1,000", "9 (8)", "6 (2)", "4.0", "0.50", "0.25", "1.5"]
