"""A world without matrices is the world that its matrices would be."""

import pytest
import torch
from scipy import stats

from esr_trainer import pairwise_world
from esr_trainer.command_line import UsageError
from esr_trainer.late_stage_rankers import LATE_STAGE_RANKERS
from esr_trainer.policy_value import System, optimal_value, popularity_value, uniform_value
from esr_trainer.slots import SLOT_WEIGHTS
from esr_trainer.synthetic import pairwise_world_of, synthetic_world
from esr_trainer.world import World


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch) -> tuple[World, World]:
    """The same world by its matrices and pair by pair, gone through in small blocks: 7 contexts, 90 items."""
    monkeypatch.setattr(pairwise_world, "CONTEXTS", 3)
    monkeypatch.setattr(pairwise_world, "ITEMS", 20)
    dense = synthetic_world(7, 90, seed=2)
    monkeypatch.setattr("esr_trainer.synthetic.has_matrices", lambda *_: False)
    pairs = synthetic_world(7, 90, seed=2)
    assert type(dense) is World
    assert type(pairs) is pairwise_world.PairwiseWorld
    return dense, pairs


def test_every_pair_is_the_matrices(worlds: tuple[World, World]) -> None:
    dense, pairs = worlds
    contexts, items = torch.tensor([3, 0, 3]), torch.tensor([[5, 89], [0, 5], [7, 7]])
    for name in ("scores", "expected_rewards", "reward_stds"):
        torch.testing.assert_close(getattr(pairs, name)(contexts, items), getattr(dense, name)(contexts, items))
    for name in ("score", "expected_reward", "reward_std"):
        torch.testing.assert_close(getattr(pairs, name), getattr(dense, name))
    drawn = [world.draw_rewards(contexts, items, torch.Generator().manual_seed(1)) for world in worlds]
    torch.testing.assert_close(*drawn)
    assert (dense.fingerprint, dense.item_ids) == (pairs.fingerprint, pairs.item_ids)
    assert pairs.description == dense.description


def test_values_go_through_it_in_blocks(worlds: tuple[World, World]) -> None:
    dense, pairs = worlds
    torch.testing.assert_close(pairs.best_rewards(25), dense.best_rewards(25))
    torch.testing.assert_close(pairs.mean_rewards(), dense.mean_rewards())
    systems = [System(LATE_STAGE_RANKERS["noisy"], world.scores, 10, SLOT_WEIGHTS["dcg"](2)) for world in worlds]
    for value in (optimal_value, popularity_value):
        assert value(pairs, systems[1]) == pytest.approx(value(dense, systems[0]), rel=1e-5)
    assert uniform_value(pairs, systems[1]) == pytest.approx(uniform_value(dense, systems[0]), rel=0.05)


def test_random_items_are_distinct_and_uniform(worlds: tuple[World, World]) -> None:
    _, pairs = worlds
    drawn = pairs.random_items(400, 60, torch.Generator().manual_seed(0))
    assert all(len(set(row)) == 60 for row in drawn.tolist())
    counts = torch.bincount(drawn.flatten(), minlength=90)
    assert stats.chisquare(counts).pvalue > 0.01


def test_matrices_that_would_not_fit_are_refused() -> None:
    world = synthetic_world(1000, 300_000)
    assert world.num_items == 300_000
    assert world.expected_rewards(torch.tensor([999]), torch.tensor([[299_999]])).shape == (1, 1)
    with pytest.raises(UsageError, match=r"world \(1000 contexts x 300000 items\) has more than 250,000,000 cells"):
        _ = world.expected_reward


def test_it_is_where_the_processor_is(worlds: tuple[World, World]) -> None:
    _, pairs = worlds
    assert pairs.to("cpu") is pairs
    assert type(pairs.subset(torch.arange(2), torch.arange(3))) is World
    assert pairwise_world_of(pairs.law.arrays, "", "").num_items == 90
