"""The whole way on real input: train, export, serve, Retrieve over the wire, compare."""

from pathlib import Path

import torch

from esr_trainer.__main__ import command_line
from esr_trainer.checkpoint import Checkpoint
from esr_trainer.environments import read_world
from esr_trainer.policy_value import replay
from esr_trainer.system import system_of
from offline_eval.intervals import bootstrap
from serving import client
from tests.conftest import last_json, run_module, serving, stock_client

SYSTEM = ["--candidates", "10", "--slate", "10", "--slot-weights", "mean", "--experts", "2", "--learning-rate", "0.03"]


def test_real_labels_from_training_to_verdict(shared: Path, tmp_path: Path) -> None:
    data = shared / "data" / "kuairec" / "small_matrix_gt2.npz"
    trained, untrained, root = tmp_path / "trained", tmp_path / "untrained", tmp_path / "bundles"

    learned = run_module("esr_trainer", "--data", data, *SYSTEM, "--steps", 500, "--out", trained, "--json")
    assert learned.returncode == 0, learned.stderr
    assert command_line(["--data", str(data), *SYSTEM, "--steps", "1", "--out", str(untrained)]) == 0
    exported = run_module("serving", "export", trained, "--out", root, "--json")
    assert exported.returncode == 0, exported.stderr
    assert last_json(exported.stdout)["version"] == 1

    # Every user over the wire: what was served is worth what the checkpoint is worth, to this user and to no other.
    world = read_world(data)
    row = {item_id: number for number, item_id in enumerate(world.item_ids)}
    with serving(root) as (_, address):
        served = torch.tensor(
            [[row[item] for item in client.retrieve(address, user, 10)[0].item_ids] for user in world.context_ids]
        )
        by_stock_client = stock_client(address, list(world.context_ids), 10)["ITEM_IDS"]
    assert [[row[item] for item in items] for items in by_stock_client] == served.tolist()
    system = system_of(Checkpoint(trained).config, world)
    value = replay(world, system, lambda contexts: served[contexts])
    permutation = torch.randperm(world.num_contexts, generator=torch.Generator().manual_seed(0))
    permuted = replay(world, system, lambda contexts: served[permutation[contexts]])
    popular = world.expected_reward.mean(dim=0).topk(10).indices
    popularity = replay(world, system, lambda contexts: popular.expand(len(contexts), -1))
    assert bootstrap((value - popularity).numpy()).low > 0.1
    assert bootstrap((value - permuted).numpy()).low > 0.1

    judged = run_module("offline_eval", "compare", trained, "--baseline", untrained, "--json")
    assert judged.returncode == 0, judged.stderr
    assert "verdict: promote" in judged.stdout
    result = last_json(judged.stdout)
    popularity_row, untrained_row, trained_row = result["judged"]
    assert abs(trained_row["policy_value"]["mean"] - float(value.mean())) < 1e-3
    assert 0.66 < popularity_row["policy_value"]["mean"] < 0.68
    assert result["optimal_policy_value"] > 0.998
    assert trained_row["difference"]["low"] > 0.5
    assert trained_row["policy_value"]["low"] > popularity_row["policy_value"]["high"]
    assert trained_row["permuted"]["high"] < trained_row["policy_value"]["low"]
    assert untrained_row["policy_value"]["high"] < popularity_row["policy_value"]["low"]
