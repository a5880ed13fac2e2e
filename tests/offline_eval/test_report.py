"""The report as a browser shows it."""

from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from esr_trainer.command_line import main
from offline_eval.__main__ import OfflineEval
from offline_eval.grids import Grid
from offline_eval.report.figures import Chart
from offline_eval.report.report import Banner, Page, Section, render
from tests.browser import chromium


def draw():
    figure, axes = plt.subplots(figsize=(8, 4))
    axes.plot([1, 2, 3], label="ca-poisson")
    axes.legend()
    return figure


CHARTS = [Chart(name, f"Chart {name}", "What to see.", draw, f"python -m {name}") for name in ("learning", "runtime")]
WIDE = Grid("Wide", [f"column {n}" for n in range(20)], [["0.123"] * 20], "How to read it.")
VERDICT = Banner("hold", "runs/<2>", "the difference +0.1000 does not lie above 0")
PAGE = Page("Report", "made here", [Section("Verdict", verdicts=[VERDICT], tables=[WIDE]), Section("C", charts=CHARTS)])


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "report.html"
    path.write_text(render(PAGE))
    return path


HEIGHTS = "return [...document.querySelectorAll('figure svg')].map(svg => svg.getBoundingClientRect().height)"


def test_every_figure_is_shown_nothing_breaks_and_nothing_is_asked_of_the_network(browser, page):
    browser.open(page)
    drawn = browser.run(
        "return [...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect().height)"
    )
    assert len(drawn) == len(CHARTS)
    assert min(drawn) > 100
    assert browser.console() == []
    assert browser.requested() == [page.as_uri()]


def test_text_from_outside_is_shown_as_text(browser, page):
    browser.open(page)
    assert "runs/<2>" in browser.run("return document.querySelector('.verdict').innerText")


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_never_scrolls_sideways(browser, page, width):
    browser.open(page, width)
    assert browser.run("return document.documentElement.scrollWidth") <= width


LUMINANCE = """
const canvas = document.createElement('canvas').getContext('2d');
const luminance = colour => { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const style = selector => getComputedStyle(document.querySelector(selector));
const paper = luminance(style('body').backgroundColor);
const contrast = colour => { const other = luminance(colour);
  return (Math.max(paper, other) + 0.05) / (Math.min(paper, other) + 0.05); };
return [contrast(style('body').color), contrast(style('figcaption').color), contrast(style('.verdict strong').color),
        contrast(style('figure svg text').fill), paper];
"""
"""WCAG 2.1's contrast of texts against the page, and the page's luminance."""


@pytest.mark.parametrize("dark", [False, True])
def test_texts_can_be_read_in_the_light_and_in_the_dark(browser, page, dark):
    browser.open(page, dark=dark)
    *contrasts, paper = browser.run(LUMINANCE)
    assert min(contrasts) >= 4.5
    assert (paper < 0.1) == dark


RESULTS = Path("offline_eval/results")
"""What is committed."""


def offline_eval(*arguments):
    """The exit code of a command in this process."""
    return main(OfflineEval, "python -m offline_eval", [str(argument) for argument in arguments])


def charts_shown(browser, page):
    """The names of the page's charts, seen to be drawn without an error or a request."""
    browser.open(page)
    assert min(browser.run(HEIGHTS)) > 60
    assert browser.console() == []
    assert browser.requested() == [page.as_uri()]
    return browser.run("return [...document.querySelectorAll('figure')].map(figure => figure.id)")


def test_the_report_of_a_replay_shows_its_verdict_its_charts_and_what_was_reproduced(browser, served_runs, tmp_path):
    page, figures = tmp_path / "report.html", tmp_path / "figures"
    command = ["compare", served_runs / "better", "--baseline", served_runs / "logged", "--report", page]
    assert offline_eval(*command, "--figures", figures, "--results", RESULTS) == 0
    shown = charts_shown(browser, page)
    assert {"policy-values", "runtime", "variance", "table5"} <= set(shown)
    assert any(name.startswith("figure3") for name in shown)
    text = browser.run("return document.body.innerText")
    assert "PROMOTE" in text
    assert "python -m offline_eval reproduce table2 --budget short" in text
    assert {path.name for path in figures.iterdir()} == {f"{name}.{kind}" for name in shown for kind in ("svg", "pdf")}


def test_the_report_of_a_log_shows_its_verdict_and_every_estimator(browser, served_runs, tmp_path):
    page, log = tmp_path / "report.html", served_runs / "feedback.db"
    command = ["compare", served_runs / "better", "--baseline", served_runs / "bundles", "--log", log]
    assert offline_eval(*command, "--report", page, "--results", tmp_path) == 0
    assert set(charts_shown(browser, page)) == {"estimates-1", "calibration"}
    text = browser.run("return document.body.innerText")
    assert "PROMOTE" in text
    assert "sn-inclusion" in text


@pytest.mark.parametrize("command", [["report", "--out"], ["compare", "run", "--report"]])
def test_a_report_that_cannot_be_written_is_one_line_before_any_work(tmp_path, command, refused):
    page = tmp_path / "nowhere" / "report.html"
    assert f"report ({page}) must be a file in a folder that is there" in refused(offline_eval(*command, page))


def test_nothing_to_show_is_one_line(tmp_path, refused):
    said = refused(offline_eval("report", "--results", tmp_path, "--out", tmp_path / "report.html"))
    assert f"results ({tmp_path}) holds nothing to show: run `reproduce` first" in said
