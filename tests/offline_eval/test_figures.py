"""Figures: their colours, their ids, their files."""

import re

from matplotlib import pyplot as plt

from offline_eval.report.figures import COLOURS, INK, Chart, inline_svg, write_files


def chart(name="learning"):
    def draw():
        figure, axes = plt.subplots()
        axes.plot([1, 2, 3], marker="o", label="top1 < ca")
        axes.axhline(2, color="black")
        axes.legend()
        return figure

    return Chart(name, "Learning", "Up is better.", draw)


def test_an_inline_figure_has_the_colours_of_the_page_and_those_of_its_series():
    svg = inline_svg(chart())
    assert svg.startswith(
        '<svg role="img" aria-labelledby="learning-title" style="max-width: 691px" viewBox="0 0 460.8 345.6">'
    )
    assert set(re.findall("#[0-9a-f]{6}", svg)) == {COLOURS[0]}
    assert svg.count("currentColor") > 10
    assert INK not in svg


def test_text_of_an_inline_figure_stays_text_and_is_escaped():
    assert "top1 &lt; ca</text>" in inline_svg(chart())


def test_two_figures_on_one_page_share_no_id():
    def ids(name):
        return set(re.findall('id="([^"]*)"', inline_svg(chart(name))))

    assert ids("learning")
    assert not ids("learning") & ids("runtime")


def test_files_are_vectors_and_the_same_every_time(tmp_path):
    first = [path.read_bytes() for path in write_files(chart(), tmp_path / "a")]
    assert [path.read_bytes() for path in write_files(chart(), tmp_path / "b")] == first
    assert first[0].startswith(b"<?xml")
    assert first[1].startswith(b"%PDF")
    assert b"/Subtype /Image" not in first[1]
