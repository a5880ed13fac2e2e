"""What a policy makes of a log: the one that logged it weighs 1, whatever it is read from."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from esr_trainer.command_line import UsageError
from esr_trainer.environments import open_world
from offline_eval.logs.logged_rounds import LoggedRounds, of_records
from offline_eval.logs.target_policies import TargetPolicy, Weigher, open_policy, without_rounding
from tests.offline_eval.served_logs import served

TABLE = np.log([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
POLICY = TargetPolicy("by hand", ("x", "y"), ("a", "b", "c"), 1, lambda rows: TABLE[rows][:, None] + 3.0)


@pytest.fixture(scope="module")
def page(bundles: Path) -> LoggedRounds:
    """60 rounds that a bundle drew."""
    return of_records(served(bundles, open_world("synthetic", None, 0), 60))


@pytest.mark.parametrize("source", ["checkpoint", "bundle root", "bundle version"])
def test_the_policy_that_logged_weighs_one(page, trained_run, bundles, source, monkeypatch) -> None:
    monkeypatch.setattr("offline_eval.logs.target_policies.CELLS", 100_000)  # several blocks
    path = {"checkpoint": trained_run, "bundle root": bundles, "bundle version": bundles / "1"}[source]
    rounds = Weigher(open_policy(path)).weigh(page, "sum")
    assert rounds.log_inclusion_ratios == pytest.approx(np.zeros((60, 2)), abs=1e-5)
    assert rounds.log_set_ratios == pytest.approx(np.zeros(60), abs=1e-4)
    assert rounds.rewards == pytest.approx(page.rewards)


def test_slots_count_as_they_weigh(page, trained_run) -> None:
    rounds = Weigher(open_policy(trained_run)).weigh(page, "dcg")
    assert rounds.rewards == pytest.approx(page.rewards * [1, 1 / np.log2(3)])


def test_rounds_of_fewer_candidates_are_weighed_by_their_own_number(bundles, trained_run) -> None:
    world = open_world("synthetic", None, 0)
    records = served(bundles, world, 4)
    short = records[0].shown
    cut = short._replace(
        candidates=short.candidates[:2], inclusion_propensities=(0.5, 0.5), log_probability=-1.0, experts=(0, 0)
    )
    first = records[0]._replace(shown=cut, slate=cut.candidates)
    mixed = of_records([first, *records[1:]])
    together = Weigher(open_policy(trained_run)).weigh(mixed, "sum")
    alone = Weigher(open_policy(trained_run)).weigh(
        of_records([records[0]._replace(shown=cut, slate=cut.candidates)]), "sum"
    )
    assert together.log_inclusion_ratios[0] == pytest.approx(alone.log_inclusion_ratios[0], abs=1e-12)
    assert together.log_set_ratios[0] == pytest.approx(alone.log_set_ratios[0], abs=1e-12)
    assert together.log_set_ratios[1:] == pytest.approx(np.zeros(3), abs=1e-4)


def test_an_unknown_item_is_never_drawn(page, trained_run) -> None:
    slate, candidates = page.slate.to_list(), page.candidates.to_list()
    strange = page._replace(
        slate=pl.Series(["strange", *slate[1:]]), candidates=pl.Series(["strange", *candidates[1:]])
    )
    rounds = Weigher(open_policy(trained_run)).weigh(strange, "sum")
    assert rounds.log_inclusion_ratios[0, 0] == -np.inf
    assert rounds.log_set_ratios[0] == -np.inf
    assert np.isfinite(rounds.log_set_ratios[1:]).all()


def items(contexts: list[str], slate: list[str], propensity: float = 0.5) -> LoggedRounds:
    size = (len(contexts), 1)
    return LoggedRounds(pl.Series(contexts), pl.Series(slate), np.ones(size), np.full(size, np.log(propensity)))


def test_one_item_is_drawn_by_the_softmax() -> None:
    rounds = Weigher(POLICY).weigh(items(["x", "y", "x", "x"], ["a", "c", "b", "z"]), "sum")
    assert np.exp(rounds.log_ratios[:, 0]) == pytest.approx([1, 1.6, 0.6, 0])
    assert rounds.agrees.tolist() == [True, True, False, False]
    assert rounds.log_set_ratios is None


def test_what_a_policy_cannot_weigh_is_refused(page, trained_run, tmp_path) -> None:
    with pytest.raises(UsageError, match=r"by hand does not know context_id \(z\)"):
        Weigher(POLICY).weigh(items(["x", "z"], ["a", "a"]), "sum")
    with pytest.raises(UsageError, match=r"a weight of by hand is e\^690; above e\^300 the logged propensities"):
        Weigher(POLICY).weigh(items(["x"], ["a"], 1e-300), "sum")
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match="holds no checkpoint"):
            open_policy(path)


def test_what_differs_by_rounding_is_the_same_policy() -> None:
    ratios = np.array([3e-7, -4e-16, 0.1, -2e-6, -np.inf])
    assert without_rounding(ratios).tolist() == [0, 0, 0.1, -2e-6, -np.inf]
