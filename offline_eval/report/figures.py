"""Figures as they are shown: inline SVG that follows the page's colours, and files for print.

A figure is drawn anew for each, because matplotlib fixes its colours while it draws.
"""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from cycler import cycler
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from offline_eval.reproduce.plots import save

mpl.use("Agg")

INK = "#010203"
"""Stands for the page's text colour while a figure is drawn: no plot would choose it."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f")
"""Okabe and Ito's, which colour-blind readers tell apart and which show on white and on black, and two more."""

ENLARGED = 1.5
"""How much larger than drawn a figure may become on a wide page."""

REFERRED_TO = "[mp][0-9a-f]{10}"
"""The ids of matplotlib's markers and clip paths."""

SERIES: dict[str, Any] = {
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "font.size": 10,
}

THEMED: dict[str, Any] = {
    **SERIES,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    "svg.fonttype": "none",  # text stays text: it can be read aloud, found and copied
}


class Chart(NamedTuple):
    """A figure, and how it came about."""

    name: str
    """Names its files and its place in the page."""
    title: str
    caption: str
    """What to see in it, in a sentence or two."""
    draw: Callable[[], Figure]
    command: str = ""
    """Makes the numbers; empty where its section names it."""


def inline_svg(chart: Chart) -> str:
    """The chart as an SVG element whose text and axes take the colour of the text around it."""
    with plt.style.context([THEMED, {"svg.hashsalt": chart.name}]):  # its ids must not meet another's
        figure = chart.draw()
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        plt.close(figure)
    svg = re.sub(rf"{INK}|#000000", "currentColor", written.getvalue())
    svg = re.sub(rf' id="(?!{REFERRED_TO}")[^"]*"', "", svg)
    view = re.search(r'viewBox="0 0 ([0-9.]+) [0-9.]+"', svg)
    assert view, "matplotlib writes a viewBox"
    label, widest = f'role="img" aria-labelledby="{chart.name}-title"', ENLARGED * float(view[1])
    content = svg[svg.index("<defs>") :]
    return f'<svg {label} style="max-width: {widest:.0f}px" {view[0]}>\n{content}'


def write_files(chart: Chart, directory: Path) -> list[Path]:
    """Write the chart as SVG and PDF, black on white; give the files."""
    directory.mkdir(parents=True, exist_ok=True)
    with plt.style.context([SERIES, {"svg.hashsalt": chart.name, "svg.fonttype": "none"}]):
        return save(chart.draw(), directory / chart.name, ("svg", "pdf"))
