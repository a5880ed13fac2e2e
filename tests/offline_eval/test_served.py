"""Train/serve skew: which differences are ties, and which are another model."""

from pathlib import Path

import torch

from esr_trainer.checkpoint import Checkpoint
from esr_trainer.environments import open_world
from esr_trainer.features import id_features
from esr_trainer.policy import greedy_candidates
from esr_trainer.towers import EarlyStageRanker
from offline_eval.replay.served import exported, largest_regret, open_bundle, served_candidates
from serving.export_check import TIE

ITEMS = torch.tensor([[1.0], [1.0 + 1e-6], [0.9], [0.1]])


def ranker() -> EarlyStageRanker:
    """One context whose logits are ITEMS: the first two tie."""
    policy = EarlyStageRanker(id_features(["u"]), id_features(["a", "b", "c", "d"]), 1, 1)
    with torch.no_grad():
        policy.context_tower.weights()["id"].fill_(1)
        policy.item_tower.weights()["id"].copy_(ITEMS)
    return policy


def test_items_that_tie_may_swap_and_others_may_not() -> None:
    policy = ranker()
    trained = greedy_candidates(policy(torch.tensor([0])), 3)
    assert trained.tolist() == [[1, 0, 2]]
    assert largest_regret(policy, trained, trained) == 0
    assert 0 < largest_regret(policy, trained, torch.tensor([[0, 1, 2]])) < TIE
    assert abs(largest_regret(policy, trained, torch.tensor([[1, 2, 0]])) - 0.1) < 1e-6
    assert abs(largest_regret(policy, trained, torch.tensor([[1, 0, 3]])) - 0.8) < 1e-6


def test_an_exported_bundle_serves_what_was_trained_in_every_context(trained_run: Path, bundles: Path) -> None:
    policy = Checkpoint(trained_run).policy()
    world = open_world("synthetic", None, 0)
    with torch.no_grad():
        trained = greedy_candidates(policy(torch.arange(1000)), 10)
    for retriever in (open_bundle(bundles), open_bundle(bundles / "1"), exported(trained_run)):
        served = served_candidates(retriever, world, 10)
        assert largest_regret(policy, trained, served) <= TIE
        assert (served == trained).double().mean() > 0.99
