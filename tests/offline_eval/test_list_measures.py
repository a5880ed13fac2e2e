"""Measures of candidate lists, by hand."""

import pytest
import torch

from esr_trainer.environments import open_world
from esr_trainer.late_stage_rankers import LATE_STAGE_RANKERS
from esr_trainer.policy_value import System
from offline_eval.list_measures import LIST_MEASURES, Lists, best_of_ranker, best_of_world, measure

LISTS = Lists(
    candidates=torch.tensor([[3, 2], [3, 0], [0, 3]]),
    baseline=torch.tensor([[3, 2], [1, 0], [1, 2]]),
    best_of_ranker=torch.tensor([[2], [1], [0]]),
    best_of_world=torch.tensor([[0, 2], [1, 2], [3, 0]]),
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
        ("novelty", (0 + 1 / 2 + 1) / 3),
    ],
)
def test_measures_by_hand(name: str, by_hand: float) -> None:
    assert LIST_MEASURES[name](LISTS) == pytest.approx(by_hand, abs=1e-12)


def test_the_gini_coefficient_of_one_list_for_everybody_and_of_equal_exposure() -> None:
    same = LISTS._replace(candidates=torch.tensor([[1, 4]] * 3))
    assert LIST_MEASURES["gini"](same) == pytest.approx(1 - 2 / 5, abs=1e-12)
    every = LISTS._replace(candidates=torch.tensor([[0, 1, 2, 3, 4]]), num_items=5)
    assert LIST_MEASURES["gini"](every) == pytest.approx(0, abs=1e-12)


def test_the_best_lists_are_those_of_the_whole_catalogue() -> None:
    world = open_world("synthetic", None, 0, contexts=7, items=30)
    two_slots = torch.ones(2)
    system = System(LATE_STAGE_RANKERS["optimal"], world.scores, 5, two_slots)
    found = best_of_ranker(world, system)
    assert found is not None
    assert found.tolist() == world.score.argsort(dim=1, descending=True)[:, :2].tolist()
    assert best_of_world(world, system).tolist() == world.expected_reward.argsort(1, descending=True)[:, :2].tolist()
    worst = best_of_ranker(world, system._replace(ranker=LATE_STAGE_RANKERS["anti"]))
    assert worst is not None
    assert worst.tolist() == world.score.argsort(dim=1)[:, :2].tolist()


def test_an_lsr_without_an_order_has_no_best_items() -> None:
    world = open_world("synthetic", None, 0, contexts=3, items=10)
    system = System(LATE_STAGE_RANKERS["uniform"], world.scores, 5, torch.ones(1))
    assert best_of_ranker(world, system) is None
    assert measure(LISTS._replace(best_of_ranker=None))["recall_of_ranker"] is None
