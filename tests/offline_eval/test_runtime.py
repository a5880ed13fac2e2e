from pathlib import Path

import pytest

from offline_eval.provenance import provenance
from offline_eval.reproduce import plots
from offline_eval.reproduce.runtime import Timing, runtime

NAMES = ("top1", "ca-poisson")


def test_every_shape_and_estimator_is_timed_beside_its_floor(tmp_path: Path) -> None:
    rows = list(runtime(NAMES, [(5, 2, 1), (5, 1, 2)], num_items=50, repeats=2))
    shapes = [(row.estimator, row.num_candidates, row.num_slots, row.num_experts) for row in rows]
    assert shapes == [(name, *shape) for shape in [(5, 2, 1), (5, 1, 2)] for name in NAMES]
    assert all(row.milliseconds > 0 and row.floor_milliseconds > 0 for row in rows)
    png, svg, pdf = plots.save(plots.runtime_figure(rows), tmp_path / "runtime", ("png", "svg", "pdf"))
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in svg.read_text()
    assert pdf.read_bytes().startswith(b"%PDF")


def test_a_multiple_is_step_over_floor() -> None:
    assert Timing("v", 1000, 10, 1, 1, milliseconds=6.0, floor_milliseconds=1.5).multiple == pytest.approx(4)


def test_a_result_says_where_it_comes_from() -> None:
    assert {"command", "commit", "machine", "torch"} == provenance("python -m offline_eval runtime").keys()
