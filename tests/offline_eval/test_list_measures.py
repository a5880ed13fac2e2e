"""Measures of candidate lists, by hand."""

import pytest
import torch

from esr_trainer.environments import open_world
from esr_trainer.late_stage_rankers import LATE_STAGE_RANKERS
from esr_trainer.policy_value import System
from offline_eval.replay.list_measures import LIST_MEASURES, Lists, best, best_of_ranker, best_of_world, measure, recall

LISTS = Lists(
    candidates=torch.tensor([[3, 2], [3, 0], [0, 3]]),
    baseline=torch.tensor([[3, 2], [1, 0], [1, 0]]),
    by_ranker=best(torch.tensor([[0, 0, 9.0, 0, 0], [0, 9, 0, 0, 0], [9, 0, 0, 0, 0]]), 1),
    by_world=best(torch.tensor([[9.0, 0, 8, 0, 0], [0, 9, 8, 0, 0], [8, 0, 0, 9, 0]]), 2),
    num_items=5,
)


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("recall_of_ranker", 2 / 3),  # found, not found, found
        ("recall_of_world", (1 / 2 + 0 + 1) / 3),
        ("coverage", 3 / 5),  # items 0, 2 and 3
        # exposures 0, 0, 1, 2, 3; weights -4, -2, 0, 2, 4; (2 * 2 + 4 * 3) / (5 * 6)
        ("gini", 16 / 30),
        ("novelty", (0 + 1 / 2 + 1 / 2) / 3),
    ],
)
def test_measures_by_hand(name: str, by_hand: float) -> None:
    assert LIST_MEASURES[name](LISTS) == pytest.approx(by_hand, abs=1e-12)


def test_the_gini_coefficient_of_one_list_for_everybody_and_of_equal_exposure() -> None:
    same = LISTS._replace(candidates=torch.tensor([[1, 4]] * 3))
    assert LIST_MEASURES["gini"](same) == pytest.approx(1 - 2 / 5, abs=1e-12)
    every = LISTS._replace(candidates=torch.tensor([[0, 1, 2, 3, 4]]), num_items=5)
    assert LIST_MEASURES["gini"](every) == pytest.approx(0, abs=1e-12)


def test_of_items_that_tie_any_will_do_but_not_for_a_better_one() -> None:
    scores = torch.tensor([[5.0, 3, 3, 3, 1]])  # of the best two, one is item 0 and the other any of items 1 to 3
    shares = [(0, 3, 1.0), (1, 2, 0.5), (0, 4, 0.5), (4, 3, 0.5), (0, 1, 1.0)]
    for one, other, share in shares:
        assert recall(best(scores, 2), torch.tensor([[one, other]])) == share


@pytest.mark.parametrize(("lsr", "best_first"), [("optimal", True), ("anti", False)])
def test_the_best_lists_are_those_of_the_whole_catalogue(lsr: str, best_first: bool) -> None:
    world = open_world("synthetic", None, 0, contexts=7, items=30)
    system = System(LATE_STAGE_RANKERS[lsr], world.scores, 5, torch.ones(2))
    by_ranker = best_of_ranker(world, system)
    assert by_ranker is not None
    first = world.score.argsort(dim=1, descending=best_first)
    assert recall(by_ranker, first[:, :5]) == 1
    assert recall(by_ranker, first[:, 1:6]) == 0.5
    assert recall(by_ranker, first[:, 2:7]) == 0
    assert recall(best_of_world(world, system), world.expected_reward.argsort(dim=1, descending=True)[:, 1:6]) == 0.5


def test_an_lsr_without_an_order_has_no_best_items() -> None:
    world = open_world("synthetic", None, 0, contexts=3, items=10)
    system = System(LATE_STAGE_RANKERS["uniform"], world.scores, 5, torch.ones(1))
    assert best_of_ranker(world, system) is None
    assert measure(LISTS._replace(by_ranker=None))["recall_of_ranker"] is None
