"""`python -m offline_eval report`, and what `--report` of other commands writes."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from esr_trainer.command_line import Command, UsageError, note

if TYPE_CHECKING:
    from offline_eval.report.report import Section

RESULTS = Path("offline_eval/results")


def command_line() -> str:
    """What the user typed."""
    return " ".join(["python -m offline_eval", *sys.argv[1:]])


def check_place(page: Path) -> None:
    """Refuse a page that could not be written, before what it shows is worked out.

    Raises:
        UsageError: its folder is not there, or it is a folder itself.
    """
    if not page.parent.is_dir() or page.is_dir():
        raise UsageError(f"report ({page}) must be a file in a folder that is there")


def write_report(page: Path, title: str, sections: "Sequence[Section]", figures: Path | None) -> None:
    """Write the page, whole or not at all, and its figures as SVG and PDF where a folder is named.

    Raises:
        UsageError: it cannot be written there.
    """
    from offline_eval.provenance import commit, machine
    from offline_eval.report.figures import write_files
    from offline_eval.report.report import Page, render

    made = f"{command_line()} · commit {commit()} · {machine()}"
    html = render(Page(title, made, sections))
    temporary = page.with_name(f".{page.name}.unfinished")
    try:
        temporary.write_text(html)
        os.replace(temporary, page)
    except OSError as error:
        raise UsageError(f"report ({page}) cannot be written: {error.strerror}") from error
    note(f"report: {page}")
    if figures:
        written = [path for section in sections for chart in section.charts for path in write_files(chart, figures)]
        note(f"figures: {len(written)} files in {figures}")


class Report(Command):
    """Write one page of everything that `reproduce` has stored: tables beside the paper's, curves, measurements.

    The page needs no network and no script; `compare --report` puts a verdict in front of it.
    """

    out: Path = Path("report.html")
    """The page."""
    results: Path = RESULTS
    """Folder of the results."""
    budget: Literal["smoke", "short", "paper"] = "short"
    """Whose runs are shown."""
    figures: Path | None = None
    """Folder for the figures as SVG and PDF."""

    def run(self) -> Mapping[str, Any]:
        """Write the page."""
        from offline_eval.report.results_page import results_sections

        check_place(self.out)
        sections = results_sections(self.results, self.budget)
        if not sections:
            raise UsageError(f"results ({self.results}) holds nothing to show: run `reproduce` first")
        write_report(self.out, "What was reproduced", sections, self.figures)
        return {"report": str(self.out), "sections": [section.title for section in sections]}
