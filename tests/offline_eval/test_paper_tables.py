"""The published tables beside ours: which runs, which marks, and nothing that was not run."""

import json
from pathlib import Path

import pytest

from offline_eval.reproduce.cells import CellResult, known_results, write_results
from offline_eval.reproduce.experiments import EXPERIMENTS
from offline_eval.reproduce.paper_tables import PAPER_TABLES, config_of, leaves, paper_grid, values_of
from offline_eval.reproduce.plan import BUDGETS, Plan
from offline_eval.reproduce.published import EARLY, Published
from offline_eval.reproduce.summary import Mean

SHORT = Plan(BUDGETS["short"], Path("shared"), Path("results"))


def finished(plan: Plan, name: str, estimator: str, preset: str, values: list[float]) -> dict[str, CellResult]:
    """Runs of one estimator and preset in every column, valued alike at half of their steps and at the end."""
    found = {}
    for cell in EXPERIMENTS[name].cells(plan):
        if cell.config.estimator == estimator and cell.config.preset == preset:
            value = values[cell.config.seed]
            found[cell.key] = CellResult(
                cell=cell,
                steps=[0, cell.config.steps // 2, cell.config.steps],
                policy_value=[1.0, value - 1, value],
                references={"uniform": 1.0, "popularity": 2.0, "initial": 1.0, "optimal": 10.0},
                failure=None,
                seconds=1.0,
                commit="abc",
            )
    return found


def test_a_mark_means_outside_1_96_standard_errors_of_the_difference() -> None:
    published = Published(8.0, 0.03)
    assert not leaves(Mean(8.097, 0.04), published)  # 1.96 x 0.05 = 0.098
    assert leaves(Mean(8.099, 0.04), published)
    assert leaves(Mean(7.901, 0.04), published)
    assert not leaves(Mean(9.0, None), published), "one seed has no standard error"


def test_marks_are_for_the_papers_preset_at_the_papers_steps() -> None:
    far = [5.0, 5.1, 5.2]

    def marks(name: str, estimator: str, preset: str) -> set[bool]:
        table, found = PAPER_TABLES[name], finished(SHORT, name, estimator, preset, far)
        places = [values_of(table, SHORT, found, (preset, estimator, column)) for column in table.columns]
        return {value.leaves for place in places for value in place}

    assert marks("table2", "v-swr", "paper") == {True}
    assert marks("table2", "v-swr", "default") == {False}
    assert marks("table2", "v", "paper") == {False}, "may be published at overflow"
    assert marks("table2", "ca-poisson", "paper") == {False}, "not published"
    assert marks("table3", "v-swr", "paper") == {False}, "published at other steps"
    assert marks("table4", "ca-swr", "paper") == {False}, "other data"


def test_a_value_is_read_at_the_published_steps_that_were_run() -> None:
    plan = SHORT._replace(budget=BUDGETS["paper"]._replace(seeds=2, paper_steps=2 * EARLY))
    table = PAPER_TABLES["table2"]
    (value,) = values_of(
        table, plan, finished(plan, "table2", "ca-swr", "paper", [8.0, 8.2]), ("paper", "ca-swr", "K=5")
    )
    assert (value.steps, value.mean.mean, value.num_seeds) == (EARLY, pytest.approx(7.1), 2)
    assert value.mean.margin == pytest.approx(0.1)


def test_a_place_that_was_not_run_says_so() -> None:
    grid = paper_grid(PAPER_TABLES["table6"], SHORT, finished(SHORT, "table6", "ca-swr", "paper", [9.0, 9.1, 9.2]))
    rows = {(row[0], row[1]): row[2:] for row in grid.rows}
    assert rows["CA-PG-SwR", "paper's preset @50K"] == [
        *["9.100 (0.058; 3) †"] * 2,  # 9.1 - 8.89 > 1.96 hypot(0.058, 0.02) = 0.12
        *["9.100 (0.058; 3)"] * 2,
    ]
    assert rows["CA-PG-SwR", "published @50K / @500K"][0] == "8.58 (0.03) / 8.97 (0.03)"
    assert rows["CA-PG-SwR", "default preset"] == ["not run"] * 4
    assert ("V-PG", "published @50K / @500K") not in rows


def test_the_semi_synthetic_matrix_is_called_that_and_a_stand_in_too() -> None:
    table = PAPER_TABLES["table4"]
    grid = paper_grid(table, SHORT, {})
    assert "semi-synthetic KuaiRec matrix" in grid.title
    assert "semi-synthetic KuaiRec matrix" in grid.caption
    stand_in = paper_grid(PAPER_TABLES["table2"], SHORT._replace(shared=None), {})
    assert "a generated world instead" in stand_in.title
    assert "†" not in stand_in.caption


@pytest.mark.parametrize("name", PAPER_TABLES)
def test_every_estimator_runs_at_both_presets_in_every_column(name: str) -> None:
    table = PAPER_TABLES[name]
    cells = {cell.key: cell for cell in EXPERIMENTS[name].cells(SHORT)}
    places = {(cell.config.estimator, cell.config.preset) for cell in cells.values()}
    assert len(places) == 5 * 2
    columns = {config_of(table, SHORT, "paper", "ca", s).model_dump_json() for s in table.columns.values()}
    assert len(cells) == len(places) * len(columns) * SHORT.budget.seeds


def test_experiments_share_what_they_have_in_common(tmp_path: Path) -> None:
    found = finished(SHORT, "table2", "ca", "paper", [8.0, 8.1, 8.2])
    write_results(tmp_path / "table2.json", "reproduce table2", list(found.values()))
    known = known_results(tmp_path)
    assert known.keys() == found.keys()
    for name in ("table3", "figure3"):
        assert {cell.key for cell in EXPERIMENTS[name].cells(SHORT)} & known.keys()


def test_a_result_file_says_where_it_comes_from(tmp_path: Path) -> None:
    found = finished(SHORT, "table2", "ca", "paper", [8.0, 8.1, 8.2])
    write_results(tmp_path / "table2.json", "reproduce table2", list(found.values()))
    content = json.loads((tmp_path / "table2.json").read_text())
    assert {"command", "machine", "torch"} <= content.keys()
    assert {"commit", "cell", "seconds"} <= content["results"][0].keys()
    assert str(content["results"][0]["cell"]["config"]["data"]) == "synthetic_env.npz"
