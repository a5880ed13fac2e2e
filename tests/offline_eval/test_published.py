"""The published numbers are those of the page that they were copied from."""

import re
from pathlib import Path

import pytest

from offline_eval.reproduce.published import (
    EARLY,
    FIGURE_4,
    FIGURE_4_HERE,
    FIGURE_4_MIXTURE,
    FIGURE_4_SHAPES,
    LATE,
    TABLE_2,
    TABLE_3,
    TABLE_4,
    TABLE_5,
    TABLE_6,
    Published,
    Rows,
)

NAMES = {
    "V-PG": "v",
    "V-PG-SwR": "v-swr",
    "CA-PG": "ca",
    "CA-PG-SwR": "ca-swr",
    "TOP1-PG": "ca-swr",
    "LSR optimal": "optimal",
    "anti-optimal": "anti",
}
NUMBER = r"\d+(?:\.\d+)?(?:e-\d+)?"


@pytest.fixture(scope="module")
def page(shared: Path) -> str:
    path = shared / "PAPER_TABLES.md"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return path.read_text()


def part(page: str, title: str) -> str:
    """A table's text, from its title to the next."""
    return page.split(f"**{title}")[1].split("\n**", maxsplit=1)[0]


@pytest.mark.parametrize(
    ("title", "rows"), [("Table 2", TABLE_2), ("Table 3", TABLE_3), ("Table 4", TABLE_4), ("Table 6", TABLE_6)]
)
def test_policy_values_are_the_pages_cell_by_cell(page: str, title: str, rows: Rows) -> None:
    head, _, *lines = [line.strip("| \n").split("|") for line in part(page, title).splitlines() if line[:1] == "|"]
    columns = [NAMES.get(column.strip(), column.strip()) for column in head]
    found = {}
    for label, *cells in lines:
        name = NAMES[label.split(" (")[0].split(" + ")[0].strip()]
        for column, cell in zip(columns, cells, strict=True):
            values = [Published(*map(float, pair)) for pair in re.findall(r"([\d.]+) \(([\d.]+)\)", cell)]
            steps = (EARLY, LATE) if len(values) == 2 else (LATE,)
            found[name, column] = dict(zip(steps, values, strict=True))
    assert found == {(name, column): cell for name, row in rows.items() for column, cell in row.items()}


def test_errors_and_gaps_are_the_pages(page: str) -> None:
    text = part(page, "Table 5").split("parentheses): ")[1]
    groups = [re.findall(rf"({NUMBER}) \(({NUMBER})\)", group) for group in text.split("·")]
    assert [[(float(error), float(gap)) for error, gap in group] for group in groups] == [list(g) for g in TABLE_5]


def test_seconds_are_the_pages(page: str) -> None:
    text = part(page, "Figure 4")
    shapes = re.search(r"\(K,L\) = ((?:\(\d+,\d+\)(?:, )?)+)", text)
    assert shapes
    assert [tuple(map(int, pair)) for pair in re.findall(r"\((\d+),(\d+)\)", shapes[1])] == list(FIGURE_4_SHAPES)
    rows = re.findall(rf"([A-Z0-9]+-PG(?:-SwR)?) ({NUMBER}(?:, {NUMBER})+)", text)
    assert {NAMES[label]: tuple(map(float, row.split(", "))) for label, row in rows} == FIGURE_4
    assert f"K = 200: {FIGURE_4_MIXTURE}" in text
    here = text.split("K = 10:")[1]
    assert {NAMES[name]: float(ms) for name, ms in re.findall(r"([A-Z0-9]+-PG(?:-SwR)?) (\d+)", here)} == FIGURE_4_HERE
