"""A network on joined features: what it computes, and that it learns what no sum of two halves can."""

import numpy as np
import pytest
import torch

from esr_trainer.features import Features, id_features
from esr_trainer.reward_model import Interactions
from esr_trainer.vocabularies import Categories
from offline_eval.procedures.joined_network import JoinedNetwork, fit


def kinds(count: int) -> Features:
    """Rows that are told apart by a feature of two values, in turn."""
    features = id_features(tuple(map(str, range(count))))
    features.vocabularies["kind"] = Categories(["even", "odd"])
    features.bags["kind"] = (np.arange(count) % 2)[:, None]
    return features


@pytest.fixture(scope="module")
def network() -> JoinedNetwork:
    """Fitted to 2,000 of 3,000 pairs: rewarded where both are even or both odd."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randperm(3000, generator=generator)[:2000]
    contexts, items = pairs // 50, pairs % 50
    rewards = (contexts % 2 == items % 2).float()
    return fit(kinds(60), kinds(50), Interactions(contexts, items, rewards, torch.ones(2000)), 0)


def test_it_learns_how_features_go_together(network: JoinedNetwork) -> None:
    found = network.matrix() > 0
    wanted = (torch.arange(60) % 2)[:, None] == torch.arange(50) % 2
    assert (found == wanted).float().mean() > 0.99


def test_the_matrix_is_the_network_pair_by_pair(network: JoinedNetwork) -> None:
    context, item = network.context_half(torch.tensor([7]))[0, 0], network.item_half()[11, 0]
    hidden = (network.second.weight @ (context + item + network.bias).relu() + network.second.bias).relu()
    by_hand = network.last.weight[0] @ hidden + network.last.bias[0]
    torch.testing.assert_close(network.matrix()[7, 11], by_hand.detach())
