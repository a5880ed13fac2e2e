"""A report: one self-contained page that is read in a browser, on a phone and on paper.

Everything is inside the file: styles, tables, figures as SVG. It needs no script and asks the network for nothing (its
content security policy would not let it).
"""

from collections.abc import Sequence
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from offline_eval.grids import Grid
from offline_eval.report.figures import Chart, inline_svg
from offline_eval.verdict import Decision


class Banner(NamedTuple):
    """A verdict in words."""

    decision: Decision
    of: str
    """The candidate."""
    because: str


class Section(NamedTuple):
    """A heading and what stands under it, in this order."""

    title: str
    words: Sequence[str] = ()
    """Paragraphs."""
    verdicts: Sequence[Banner] = ()
    tables: Sequence[Grid] = ()
    charts: Sequence[Chart] = ()
    command: str = ""
    """Makes all of it; empty where each chart names its own."""


class Page(NamedTuple):
    """A whole report."""

    title: str
    made: str
    """By which command, of which commit, on which machine."""
    sections: Sequence[Section]


def render(page: Page) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("offline_eval.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline_svg"] = lambda chart: Markup(inline_svg(chart))
    environment.tests["text"] = lambda cell: cell[:1].isalpha()
    return environment.get_template("report.html.j2").render(page=page)
