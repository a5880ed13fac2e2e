"""Grids: tables of text, for the terminal and for Markdown."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table


class Grid(NamedTuple):
    """A table as people read it."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    """How to read it."""


def rich_table(grid: Grid) -> Table:
    """For the terminal."""
    table = Table(*grid.head, title=grid.title, caption=grid.caption or None, caption_justify="left")
    for row in grid.rows:
        table.add_row(*row)
    return table


def markdown(grid: Grid) -> str:
    """For a page: the title, the table, the caption."""
    lines = [grid.head, ["---"] * len(grid.head), *grid.rows]
    table = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
    return "\n\n".join(part for part in (f"**{grid.title}**", table, grid.caption) if part)
