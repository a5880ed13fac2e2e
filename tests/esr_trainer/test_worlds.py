import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from esr_trainer import synthetic
from esr_trainer.command_line import UsageError
from esr_trainer.environments import ENVIRONMENTS, open_world, read_world

KUAIREC = Path("data") / "kuairec"
GENERATED = sorted(name for name, generator in ENVIRONMENTS.items() if generator)


@pytest.mark.parametrize("name", GENERATED)
def test_a_world_is_decided_by_its_seed(name: str) -> None:
    world, again, other = (open_world(name, None, seed) for seed in (1, 1, 2))
    assert world.environment == name
    assert world.expected_reward.shape == (world.num_contexts, world.num_items)
    assert (world.expected_reward >= 0).all()
    assert world.fingerprint == again.fingerprint != other.fingerprint


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_world_has_the_shape_that_is_asked_for(name: str) -> None:
    world = open_world(name, None, 0, contexts=7, items=30)
    assert (world.num_contexts, world.num_items) == world.expected_reward.shape == (7, 30)
    own = open_world(name, None, 0)
    assert open_world(name, None, 0, items=own.num_items).fingerprint == own.fingerprint != world.fingerprint
    assert open_world(name, None, 0, contexts=8, items=30).fingerprint != world.fingerprint


@pytest.mark.parametrize("name", GENERATED)
def test_drawn_rewards_have_the_mean_and_deviation_of_the_world(name: str) -> None:
    world = open_world(name, None, 0)
    contexts, items = torch.full((40_000,), 3), torch.full((40_000, 1), 5)
    drawn = world.draw_rewards(contexts, items, torch.Generator().manual_seed(0))
    std = float(world.reward_std[3, 5])
    assert float(drawn.mean()) == pytest.approx(float(world.expected_reward[3, 5]), abs=4 * std / math.sqrt(40_000))
    assert float(drawn.std()) == pytest.approx(std, rel=0.02)


def test_published_synthetic_world(shared: Path) -> None:
    world = read_world(shared / "golden" / "synthetic_env.npz")
    with np.load(shared / "golden" / "synthetic_env.npz") as golden:
        corners = {
            "score_corner": world.score,
            "reward_mean_corner": world.expected_reward,
            "reward_std_corner": world.reward_std,
        }
        for name, values in corners.items():
            np.testing.assert_allclose(values[:64, :64].numpy(), golden[name], rtol=0, atol=1e-5)
        optimum = float(world.expected_reward.amax(dim=1).mean())
        assert optimum == pytest.approx(float(golden["optimal_value"]), abs=1e-5)


def test_synthetic_world_of_one_dimension_by_hand() -> None:
    # x = 1, a = 1 or -1; c_x = -2, c_a = 1: eta^2 = sigmoid(-2 + 3) sigmoid(1 + 3) for a = 1 and
    # sigmoid(1) sigmoid(-1 + 3) for a = -1. M0 = 1, Mz = -1: q = 10 x a (1 - 2 eta).
    arrays = {name: torch.tensor([[1.0]]) for name in ("latent", "reward_std_coefs", "contexts")}
    arrays |= {"projection": torch.tensor([[-1.0]]), "items": torch.tensor([[1.0], [-1.0]])}
    arrays |= {"context_reactiveness_coef": torch.tensor([-2.0]), "item_reactiveness_coef": torch.tensor([1.0])}
    arrays |= {"context_reactiveness_bias": torch.tensor(3.0), "item_reactiveness_bias": torch.tensor(3.0)}
    arrays |= {"reward_std_bias": torch.tensor(1.0), "reward_scale": torch.tensor(10.0)}
    world = synthetic.world_of(arrays, "by hand", "by hand")
    eta = [math.sqrt(0.7310586 * 0.9820138), math.sqrt(0.7310586 * 0.8807971)]
    scores = [10 * (1 - 2 * eta[0]), -10 * (1 - 2 * eta[1])]
    torch.testing.assert_close(world.score, torch.tensor([scores]), rtol=0, atol=1e-5)
    rewards = [math.log1p(math.exp(score)) + 1 for score in scores]
    torch.testing.assert_close(world.expected_reward, torch.tensor([rewards]), rtol=0, atol=1e-5)
    torch.testing.assert_close(world.reward_std, torch.tensor([[0.8807971, 0.5]]), rtol=0, atol=1e-5)


def test_real_labels(shared: Path) -> None:
    world = read_world(shared / KUAIREC / "small_matrix_gt2.npz")
    assert world.expected_reward.shape == (1411, 3327)
    assert int(world.expected_reward.sum()) == 217_175
    contexts, items = torch.tensor([0, 7]), torch.tensor([[1, 2], [3, 4]])
    drawn = world.draw_rewards(contexts, items, torch.Generator())
    assert (drawn == world.expected_rewards(contexts, items)).all(), "on binary labels the reward is the label"


def test_semisynthetic_matrix_agrees_with_the_real_sample_and_says_what_it_is(shared: Path) -> None:
    world = read_world(shared / KUAIREC / "small_matrix_semisynthetic.npz")
    assert world.description.startswith("semi-synthetic KuaiRec")
    with np.load(shared / KUAIREC / "small_matrix_watch_ratio_sample.npz") as sample:
        real = np.clip(sample["watch_ratio"], 0, 10)
        found = world.expected_reward.numpy()[sample["row"], sample["col"]]
    np.testing.assert_allclose(found, real, rtol=0, atol=1e-3)
    assert float(world.expected_reward.amax(dim=1).mean()) == pytest.approx(9.462, abs=1e-3)


def test_simulator_has_kuairecs_shape_and_marginals() -> None:
    world = open_world("kuairec", None, 0)
    watch_ratio = world.expected_reward.numpy()
    assert watch_ratio.shape == (1411, 3327)
    assert np.quantile(watch_ratio, [0.5, 0.95, 0.99]) == pytest.approx([0.77, 1.96, 3.6], rel=0.03)
    above = (watch_ratio > 2).mean(axis=1)
    assert above.mean() == pytest.approx(0.046, abs=0.004)
    assert above.min() < 0.006
    assert above.max() > 0.25


def test_original_csv(tmp_path: Path) -> None:
    path = tmp_path / "small_matrix.csv"
    path.write_text(
        "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio\n"
        "14,148,4381,6067,2020-07-05 05:27:48.378,20200705.0,1593898068.378,0.7221\n"
        "14,183,11635,6100,2020-07-05 05:28:00.057,20200705.0,1593898080.057,1.9073\n"
        "19,148,22422,10867,2020-07-05 05:29:09.479,20200705.0,1593898149.479,206.33\n"
    )
    world = read_world(path)
    assert (world.context_ids, world.item_ids) == (("14", "19"), ("148", "183"))
    torch.testing.assert_close(world.expected_reward, torch.tensor([[0.7221, 1.9073], [10.0, 0.0]]))
    torch.testing.assert_close(world.reward_std, 0.3 * world.expected_reward)


def truncated(path: Path) -> None:
    np.savez(path, gt2_bits=np.zeros((3, 1), np.uint8), user_id=np.arange(3), video_id=np.arange(8))
    path.write_bytes(path.read_bytes()[:200])


def of_other_arrays(path: Path) -> None:
    np.savez(path, something=np.zeros(3))


def of_objects(path: Path) -> None:
    np.savez(path, gt2_bits=np.array([{}], dtype=object), user_id=np.arange(3), video_id=np.arange(8))


def of_arrays_that_do_not_fit(path: Path) -> None:
    np.savez(path, gt2_bits=np.zeros(3, np.uint8), user_id=np.arange(3), video_id=np.arange(8))


def of_fewer_rows_than_users(path: Path) -> None:
    np.savez(path, gt2_bits=np.zeros((3, 1), np.uint8), user_id=np.arange(5), video_id=np.arange(8))


def of_a_user_twice(path: Path) -> None:
    np.savez(path, gt2_bits=np.zeros((3, 1), np.uint8), user_id=np.array([4, 5, 4]), video_id=np.arange(8))


def of_flipped_bits(path: Path) -> None:
    np.savez_compressed(path, gt2_bits=np.arange(900, dtype=np.uint8).reshape(3, 300), user_id=np.arange(3))
    content = bytearray(path.read_bytes())
    content[60:70] = b"\xff" * 10
    path.write_bytes(content)


def of_nan(path: Path) -> None:
    bits, ids = np.zeros((2, 1), np.uint8), np.arange(2)
    watch_ratio = np.array([[1.0, np.nan], [1.0, 1.0]])
    np.savez(path, watch_ratio_milli=watch_ratio, observed_bits=bits, user_id=ids, video_id=ids)


def of_other_columns(path: Path) -> None:
    path.write_text("user,video\n1,2\n")


def of_words(path: Path) -> None:
    path.write_text("user_id,video_id,watch_ratio\n1,2,much\n")


def with_holes(path: Path) -> None:
    path.write_text("user_id,video_id,watch_ratio\n1,2,\n")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def without_rows(path: Path) -> None:
    path.write_text("user_id,video_id,watch_ratio\n")


@pytest.mark.parametrize(
    "write",
    [
        truncated,
        of_other_arrays,
        of_objects,
        of_arrays_that_do_not_fit,
        of_fewer_rows_than_users,
        of_a_user_twice,
        of_flipped_bits,
        of_nan,
        of_other_columns,
        of_words,
        with_holes,
        empty,
        without_rows,
    ],
)
def test_malformed_files_are_refused(write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    write(path)
    with pytest.raises(UsageError, match=r"data \(.*data\.npz\)"):
        read_world(path)


def test_the_shape_of_a_file_is_its_own(tmp_path: Path) -> None:
    path = tmp_path / "small_matrix.csv"
    path.write_text("user_id,video_id,watch_ratio\n1,2,0.5\n")
    with pytest.raises(
        UsageError, match=r"items \(30\) is for generated worlds: data \(.*csv\) has a shape of its own"
    ):
        open_world(None, path, 0, items=30)


def test_a_world_that_does_not_fit_into_memory_is_refused() -> None:
    with pytest.raises(UsageError, match=r"world \(1000000 contexts x 1000000 items\) has more than 250,000,000 cells"):
        open_world("kuairec", None, 0, contexts=10**6, items=10**6)
    with pytest.raises(UsageError, match=r"world \(1000 contexts x 1000000000 items\) has more than 100,000,000 rows"):
        open_world("synthetic", None, 0, contexts=1000, items=10**9)


def test_a_clash_of_environment_and_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small_matrix.csv"
    path.write_text("user_id,video_id,watch_ratio\n1,2,0.5\n")
    with pytest.raises(UsageError, match=r"environment \(synthetic\) clashes"):
        open_world("synthetic", path, 0)
    assert open_world(None, path, 0).environment == "kuairec"
