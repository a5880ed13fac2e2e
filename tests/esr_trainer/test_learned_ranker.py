from pathlib import Path

import pytest
import torch

from esr_trainer.command_line import UsageError
from esr_trainer.environments import open_world
from esr_trainer.learned_ranker import LearnedRanker, fit_learned_ranker, logged_feedback
from esr_trainer.world import World


@pytest.fixture(scope="module")
def world() -> World:
    return open_world("synthetic", None, 0, contexts=80, items=60)


@pytest.fixture(scope="module")
def content(world: World) -> bytes:
    return fit_learned_ranker(world, 10_000, 0)


def test_logged_feedback_is_uniform_and_noisy(world: World) -> None:
    feedback = logged_feedback(world, 48_000, torch.Generator().manual_seed(0))
    count = torch.zeros(80, 60).index_put_((feedback.contexts, feedback.items), torch.ones(48_000), accumulate=True)
    assert 0 < count.min() < count.mean() == 10
    residual = feedback.rewards - world.expected_reward[feedback.contexts, feedback.items]
    std = world.reward_std[feedback.contexts, feedback.items]
    assert float((residual / std).std()) == pytest.approx(1, abs=0.02)


def test_a_learned_ranker_orders_like_the_oracle_where_tastes_can_be_learned(world: World, content: bytes) -> None:
    ranker = LearnedRanker(content, world)
    contexts = torch.arange(80)
    first = ranker(contexts, torch.arange(60).expand(80, -1)).argmax(dim=1, keepdim=True)
    value = float(world.expected_rewards(contexts, first).mean())
    popular, best = float(world.expected_reward.mean(dim=0).max()), float(world.expected_reward.amax(dim=1).mean())
    assert value > popular + 0.85 * (best - popular)


def test_rows_are_found_by_id(world: World, content: bytes) -> None:
    reversed_world = World(
        "synthetic",
        "",
        world.context_ids[::-1],
        world.item_ids[:50][::-1],
        *[torch.zeros(80, 50)] * 3,
        "by hand",
    )
    ranker, elsewhere = LearnedRanker(content, world), LearnedRanker(content, reversed_world)
    there = elsewhere(torch.tensor([0, 3]), torch.tensor([[0, 1], [2, 49]]))
    assert torch.equal(there, ranker(torch.tensor([79, 76]), torch.tensor([[49, 48], [47, 0]])))


def test_a_ranker_that_does_not_know_the_world_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"lsr \(ranker.safetensors\): it was fitted without item 60"):
        LearnedRanker(content, open_world("synthetic", None, 0, contexts=80, items=61))
    with pytest.raises(UsageError, match=r"lsr \(ranker.safetensors\): it holds no reward model"):
        LearnedRanker(b"something else", open_world("synthetic", None, 0, contexts=8, items=8))
