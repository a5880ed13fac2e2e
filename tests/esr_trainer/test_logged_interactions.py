from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from esr_trainer.__main__ import command_line
from esr_trainer.checkpoint import Checkpoint
from esr_trainer.command_line import UsageError, main
from esr_trainer.environments import open_world, read_world
from esr_trainer.features import read_features
from esr_trainer.logged_interactions import weights_of
from esr_trainer.policy_value import popularity_value, replay
from esr_trainer.system import system_of
from esr_trainer.training import greedy_values
from esr_trainer.world import MAX_CELLS, World
from offline_eval.__main__ import OfflineEval
from serving import Retriever
from serving.export import export
from tests.conftest import last_json

TRUTH = open_world("synthetic", None, 0, contexts=80, items=60)
"""A world of low rank whose log is all that the tests' readers see."""


def log_of(world: World, count: int) -> pl.DataFrame:
    """Random items shown to random users; ids that only text keeps apart, such as 007."""
    generator = torch.Generator().manual_seed(0)
    contexts = torch.randint(world.num_contexts, (count,), generator=generator)
    items = torch.randint(world.num_items, (count, 1), generator=generator)
    rewards = world.draw_rewards(contexts, items, generator)[:, 0].clamp(min=0)
    return pl.DataFrame(
        {
            "context_id": [f"u{row:03}" for row in contexts.tolist()],
            "item_id": [f"{row:03}" for row in items[:, 0].tolist()],
            "reward": rewards.numpy(),
        }
    )


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    log_of(TRUTH, 10_000).write_parquet(path)
    return path


@pytest.fixture(scope="module")
def world(log: Path) -> World:
    return read_world(log)


def test_the_world_of_a_log_predicts_better_than_popularity(world: World) -> None:
    assert world.environment == "interactions"
    assert (world.context_ids[7], world.item_ids[7]) == ("u007", "007")
    assert (world.expected_reward >= 0).all(), "as all rewards are"
    error = float((world.expected_reward - TRUTH.expected_reward).square().mean())
    popular = TRUTH.expected_reward.mean(dim=0)
    assert error < 0.15 * float((popular - TRUTH.expected_reward).square().mean())
    assert "held-out mean squared error" in world.description
    assert "each item's mean" in world.description
    noise = float(TRUTH.reward_std.square().mean().sqrt())
    assert float(world.reward_std[0, 0]) == pytest.approx(noise, rel=0.2)


def test_of_the_items_that_a_user_never_saw_it_picks_better_than_popularity(log: Path, world: World) -> None:
    rows = pl.read_parquet(log)
    unseen = torch.ones(TRUTH.expected_reward.shape)
    unseen[[int(name[1:]) for name in rows["context_id"]], [int(name) for name in rows["item_id"]]] = 0
    hidden, contexts = unseen == 0, torch.arange(TRUTH.num_contexts)
    picked, popular = (
        TRUTH.expected_reward[contexts, predicted.masked_fill(hidden, -1).argmax(dim=1)].mean()
        for predicted in (world.expected_reward, TRUTH.expected_reward.mean(dim=0).expand(TRUTH.num_contexts, -1))
    )
    assert picked > popular + 0.5


def test_csv_and_parquet_hold_the_same_world(log: Path, world: World, tmp_path: Path) -> None:
    pl.read_parquet(log).write_csv(tmp_path / "log.csv")
    same = read_world(tmp_path / "log.csv")
    assert torch.equal(same.expected_reward, world.expected_reward)
    assert (same.context_ids, same.item_ids) == (world.context_ids, world.item_ids)
    assert same.fingerprint != read_world(tmp_path / "log.csv", seed=1).fingerprint


def test_what_is_learned_on_a_log_is_worth_more_in_the_true_world(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ["--data", str(log), "--candidates", "5", "--experts", "1", "--steps", "200", "--batch", "64"]
    assert command_line([*options, "--learning-rate", "0.05", "--out", str(out)]) == 0
    checkpoint = Checkpoint(out)
    system = system_of(checkpoint.config, TRUTH)
    truly = float(greedy_values(TRUTH, system, checkpoint.policy()).mean())
    popular = popularity_value(TRUTH, system)
    assert truly > popular + 0.5 * (float(TRUTH.expected_reward.amax(dim=1).mean()) - popular)

    capsys.readouterr()
    assert main(OfflineEval, "python -m offline_eval", ["compare", str(out), "--json"]) == 0
    judged = last_json(capsys.readouterr().out)["judged"][1]["policy_value"]["mean"]
    assert judged == pytest.approx(checkpoint.description.metrics["policy_value"])

    export(out, tmp_path / "bundles")
    served = Retriever.open(tmp_path / "bundles").retrieve("u007", 5).item_ids
    row = torch.tensor([[int(item) for item in served]])
    assert torch.isfinite(replay(TRUTH, system, lambda contexts: row.expand(len(contexts), -1))).all()
    assert all(len(item) == 3 for item in served), "the data's own ids"


def test_propensities_undo_what_the_logging_policy_preferred(tmp_path: Path) -> None:
    # Reward 4 was logged nine times as often as reward 0, for every pair alike: the mean is 3.6, unweighted.
    pairs = [(f"u{user}", f"v{item}") for user in range(20) for item in range(20)]
    rows = [(*pair, reward, chance) for pair in pairs for reward, chance in [(4.0, 0.9)] * 9 + [(0.0, 0.1)]]
    table = pl.DataFrame(rows, schema=["context_id", "item_id", "reward", "propensity"], orient="row")
    table.write_csv(tmp_path / "log.csv")
    table.drop("propensity").write_csv(tmp_path / "plain.csv")
    weighted, plain = (float(read_world(tmp_path / name).expected_reward.mean()) for name in ("log.csv", "plain.csv"))
    assert weighted == pytest.approx(2, abs=0.2)
    assert plain == pytest.approx(3.6, abs=0.2)


def test_inverse_propensities_are_clipped() -> None:
    weights = weights_of(pl.Series([1.0] * 999 + [1e-6]))
    assert float(weights.mean()) == pytest.approx(1)
    assert float(weights[-1] / weights[0]) == pytest.approx(10 / 0.01), "not a million"


HEADER = "context_id,item_id,reward,propensity\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("context_id,item_id,clicks\nu,v,1\n", "has no column reward; a log needs context_id, item_id, reward"),
        (HEADER, "has 0 rows"),
        (HEADER + "u,v,1,0.5\nu,v,,0.5\n", "row 2 has reward None; it must be a finite number"),
        (HEADER + "u,v,1,0.5\nu,v,nan,0.5\n", "row 2 has reward nan"),
        (HEADER + "u,v,1,0.5\nu,v,much,0.5\n", "row 2 has reward much"),
        (HEADER + "u,v,1,0.5\nu,v,1,0\n", "row 2 has propensity 0; it must be above 0 and at most 1"),
        (HEADER + "u,v,1,1.5\nu,v,1,0.1\n", "row 1 has propensity 1.5"),
        (HEADER + "u,v,1,\nu,v,1,0.1\n", "row 1 has propensity None"),
        (HEADER + "u,v,1,1\n,v,1,0.1\n", "row 2 has context_id None; it must be there"),
        (HEADER + "u,,1,1\nu,v,1,0.1\n", "row 1 has item_id None"),
        (HEADER + "u,v,1,1,9,9\nu,v,1,0.1\n", "cannot be read"),
        (b"PAR1 and nothing else", "cannot be read"),
    ],
)
def test_logs_that_cannot_be_used_are_one_line(
    content: str | bytes, says: str, tmp_path: Path, refused: Callable[[int], str]
) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refused(command_line(["--data", str(path), "--candidates", "1", "--out", str(tmp_path / "run")]))
    assert says in line
    assert f"data ({path})" in line
    assert not (tmp_path / "run").exists()


def test_a_log_of_too_many_ids_is_refused_before_it_is_fitted(tmp_path: Path) -> None:
    count = int(MAX_CELLS**0.5) + 1
    path = tmp_path / "log.parquet"
    pl.DataFrame({"context_id": range(count), "item_id": range(count), "reward": np.ones(count)}).write_parquet(path)
    with pytest.raises(
        UsageError, match=rf"world \({count} contexts x {count} items\) has more than 250,000,000 cells"
    ):
        read_world(path)


def test_the_environment_of_a_log_needs_its_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"environment \(interactions\) is made from a file"):
        open_world("interactions", None, 0)


def test_features_in_parquet_are_those_in_csv(tmp_path: Path) -> None:
    pl.DataFrame({"id": [7, 8], "tags": [["b", "a"], None], "age": [30, 40]}).write_parquet(
        tmp_path / "features.parquet"
    )
    (tmp_path / "features.csv").write_text('id,tags,age\n7,"[b, a]",30\n8,,40\n')
    one, other = (read_features(("8", "7", "9"), tmp_path / f"features.{kind}") for kind in ("parquet", "csv"))
    assert one.vocabularies == other.vocabularies == {"id": ("8", "7", "9"), "tags": ("a", "b"), "age": ("30", "40")}
    assert all(np.array_equal(one.bags[name], other.bags[name]) for name in one.bags)
