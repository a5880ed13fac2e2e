"""Tables of pages are written from results, and nothing else of the page is touched."""

from pathlib import Path

import pytest

from esr_trainer.command_line import UsageError, main
from offline_eval.__main__ import OfflineEval
from offline_eval.report.pages import rewritten
from tests.conftest import ROOT

RESULTS = ROOT / "offline_eval/results"
PAGE = "Before.\n\n<!-- results of table4 -->\nold\n<!-- end -->\n\nAfter.\n"


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_a_pages_tables_are_what_the_results_say(page: str) -> None:
    text = (ROOT / page).read_text()
    assert "<!-- results of " in text
    assert rewritten(text, RESULTS, "short") == text, "run `python -m offline_eval tables`"


def test_only_what_is_marked_is_written(tmp_path: Path) -> None:
    new = rewritten(PAGE, tmp_path, "short")
    assert new.startswith("Before.\n\n<!-- results of table4 -->\n\n**Table 4: semi-synthetic KuaiRec matrix**\n")
    assert new.endswith("\n<!-- end -->\n\nAfter.\n")
    assert "old" not in new
    assert "5.05 (0.06) / 7.91 (0.05)" in new
    assert "not run" in new
    assert rewritten(new, tmp_path, "short") == new


def test_a_page_may_have_some_of_the_columns(tmp_path: Path) -> None:
    page = PAGE.replace("table4", "table4: K=50, K=200")
    new = rewritten(page, tmp_path, "short")
    assert "|  |  | K=50 | K=200 |\n" in new
    assert new.startswith("Before.\n\n<!-- results of table4: K=50, K=200 -->\n")
    assert rewritten(new, tmp_path, "short") == new
    with pytest.raises(UsageError, match=r"columns \(K=7\): must be of K=50, K=100, K=200"):
        rewritten(page.replace("K=50", "K=7"), tmp_path, "short")


def test_a_marker_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"results of \(table9\): must be one of table2"):
        rewritten(PAGE.replace("table4", "table9"), tmp_path, "short")


def test_the_command_draws_what_a_page_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.md"
    path.write_text(PAGE.replace("table4", "variance"))
    (tmp_path / "variance.json").write_text((RESULTS / "variance.json").read_text())
    assert (
        main(OfflineEval, "python -m offline_eval", ["tables", "--pages", str(path), "--results", str(tmp_path)]) == 0
    )
    assert "variance.svg" in capsys.readouterr().out
    assert (tmp_path / "variance.png").stat().st_size > 10_000


def test_the_command_writes_the_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    arguments = ["tables", "--pages", str(path), "--results", str(tmp_path)]
    assert main(OfflineEval, "python -m offline_eval", arguments) == 0
    assert f"written: {path}" in capsys.readouterr().out
    assert main(OfflineEval, "python -m offline_eval", arguments) == 0
    assert "written: nothing" in capsys.readouterr().out
    assert path.read_text() == rewritten(PAGE, tmp_path, "short")
