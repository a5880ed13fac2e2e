"""Table 5, figure 4 and the variance: measured, kept, and shown beside what was published."""

from pathlib import Path

import pytest

from esr_trainer.command_line import UsageError
from offline_eval.reproduce.inclusion_error import CHUNK, PAPER_CANDIDATES, paper_errors
from offline_eval.reproduce.measurements import MEASUREMENTS, figure4_grids, stored_rows, table5_grids
from offline_eval.reproduce.published import TABLE_5
from offline_eval.reproduce.runtime import Timing
from tests.conftest import last_json, run_module


def test_table_5_has_the_published_columns_and_gaps() -> None:
    rows = list(paper_errors(CHUNK, num_items=300))
    assert len(rows) == sum(map(len, TABLE_5))
    assert [row.num_candidates for row in rows] == list(PAPER_CANDIDATES) * 3
    for row in rows:
        assert row.of_sets["ca-poisson"] < row.of_sets["ca"], "the closed form is nearer to draws"
    (grid,) = table5_grids(rows)
    assert grid.rows[1][2:] == [f"{column.error:.1e}" for group in TABLE_5 for column in group]


def test_figure_4_stands_beside_the_published_seconds() -> None:
    rows = [Timing("v", 1000, 10, 1, 1, 4.0, 2.0), Timing("v-swr", 1000, 50, 1, 5, 12.5, 2.0)]
    one, five = figure4_grids(rows)
    assert one.rows[:3] == [
        ["V-PG", "published", "28.9", "32.1", "38.3", "40.5"],
        ["V-PG", "its code, 2 cores", "", "135", "", ""],
        ["V-PG", "here", "not run", "4.00", "not run", "not run"],
    ]
    assert five.rows[0] == ["V-PG-SwR", "not run", "12.50", "not run"]


@pytest.mark.slow
def test_what_was_measured_is_shown_and_not_measured_again(tmp_path: Path) -> None:
    command = ("reproduce", "variance", "--budget", "smoke", "--results", tmp_path, "--pdf", "--json")
    first = run_module("offline_eval", *command)
    assert first.returncode == 0, first.stderr
    path = tmp_path / "variance.json"
    written = path.stat().st_mtime_ns
    for ending in ("png", "svg", "pdf"):
        assert (tmp_path / f"variance.{ending}").stat().st_size > 5000
    again = run_module("offline_eval", *command)
    assert "is there and shown as it is" in again.stderr
    assert path.stat().st_mtime_ns == written
    assert last_json(again.stdout) == last_json(first.stdout)


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "variance.json").write_text('{"rows": [{"lsr": "optimal"}]}')
    with pytest.raises(UsageError, match=r"variance\.json\) cannot be read"):
        stored_rows(MEASUREMENTS["variance"], tmp_path)
