import pytest
import torch

from esr_trainer.late_stage_rankers import LATE_STAGE_RANKERS
from esr_trainer.policy_value import System, optimal_value, popularity_value, replay, uniform_value
from esr_trainer.slots import SLOT_WEIGHTS
from esr_trainer.world import World

# Two contexts, four items. Popular: mean rewards 3, 2.5, 2, 0.5.
REWARDS = torch.tensor([[6.0, 1.0, 4.0, 0.0], [0.0, 4.0, 0.0, 1.0]])
WORLD = World("kuairec", "by hand", ("x", "y"), ("a", "b", "c", "d"), REWARDS, REWARDS, torch.zeros(2, 4), "by hand")


def system(lsr: str, num_candidates: int, num_slots: int, weights: str = "sum") -> System:
    return System(LATE_STAGE_RANKERS[lsr], WORLD.scores, num_candidates, SLOT_WEIGHTS[weights](num_slots))


def test_slot_weights() -> None:
    assert SLOT_WEIGHTS["sum"](3).tolist() == [1, 1, 1]
    assert SLOT_WEIGHTS["mean"](4).tolist() == [0.25] * 4
    assert SLOT_WEIGHTS["dcg"](3).tolist() == pytest.approx([1, 0.6309298, 0.5])


def test_replay_sums_the_weighted_slots_of_every_context() -> None:
    choice = torch.tensor([[1, 2], [3, 0]])
    values = replay(WORLD, system("optimal", 2, 2, "dcg"), lambda contexts: choice[contexts])
    assert values.tolist() == pytest.approx([4 + 0.6309298 * 1, 1 + 0])
    values = replay(WORLD, system("uniform", 2, 1), lambda contexts: choice[contexts])
    assert values.tolist() == [2.5, 0.5]


def test_a_ranker_goes_by_its_own_scores() -> None:
    alphabetical = system("optimal", 3, 1)._replace(scores=lambda contexts, items: -items.float())
    values = replay(WORLD, alphabetical, lambda contexts: torch.tensor([[3, 2, 1], [2, 0, 3]])[contexts])
    assert values.tolist() == [1, 0], "items b and a, though d and c bring more"


def test_optimum_takes_the_best_of_all_items() -> None:
    assert optimal_value(WORLD, system("anti", 2, 2)) == pytest.approx((6 + 4 + 4 + 1) / 2)
    assert optimal_value(WORLD, system("anti", 2, 2, "dcg")) == pytest.approx((6 + 4 + 0.6309298 * (4 + 1)) / 2)


def test_popularity_is_one_list_for_everybody() -> None:
    # K = 2: items a and b for both contexts; the optimal LSR shows a to x and b to y.
    assert popularity_value(WORLD, system("optimal", 2, 1)) == pytest.approx((6 + 4) / 2)


def test_uniform_is_the_mean_over_random_candidates() -> None:
    # K = 1: the mean reward of the catalogue. 600 equal pairs of contexts make the draws average out.
    many = World(
        "kuairec",
        "",
        tuple(map(str, range(1200))),
        ("a", "b", "c", "d"),
        *[REWARDS.repeat(600, 1)] * 2,
        torch.zeros(1200, 4),
        "by hand",
    )
    assert uniform_value(many, system("optimal", 1, 1)._replace(scores=many.scores)) == pytest.approx(16 / 8, abs=0.1)
    # K = 4 takes everything: nothing is random.
    assert uniform_value(WORLD, system("optimal", 4, 1)) == pytest.approx((6 + 4) / 2)
