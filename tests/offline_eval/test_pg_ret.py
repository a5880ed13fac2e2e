"""PG-Ret's table: its measures by hand, and the whole command on a small world of KuaiRec's form."""

from pathlib import Path

import numpy as np
import pytest
import torch

from esr_trainer.command_line import main
from esr_trainer.environments import read_world
from esr_trainer.pg_ret import top_of
from esr_trainer.preparation import settle
from offline_eval.__main__ import OfflineEval
from offline_eval.procedures.pg_ret import (
    GOALS,
    INFONCE,
    LIST,
    MEASURES,
    NOVELTY_EVERY,
    Question,
    advance_to_novelty,
    advanced,
    measure,
    novelty,
    settings,
)
from tests.conftest import last_json

USERS, ITEMS = 60, 80


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users of two tastes; the watch ratio is 3 where the real label is 1, and 1.7 in some other cells."""
    root = tmp_path_factory.mktemp("shared")
    labels = np.zeros((USERS, ITEMS), np.uint8)
    labels[:30, :20], labels[30:, 20:40] = 1, 1
    wrong = np.random.default_rng(0).random(labels.shape) < 0.1
    ids = {"user_id": np.arange(USERS), "video_id": np.arange(ITEMS)}
    data = root / "data" / "kuairec"
    data.mkdir(parents=True)
    np.savez(data / "small_matrix_gt2.npz", gt2_bits=np.packbits(labels, axis=1), **ids)
    ratio = np.where(labels, 3000, np.where(wrong, 1700, 500)).astype(np.uint16)
    bits = np.packbits(np.ones_like(labels), axis=1)
    np.savez(data / "small_matrix_semisynthetic.npz", watch_ratio_milli=ratio, observed_bits=bits, **ids)
    return root


def test_measures_by_hand() -> None:
    """Two users of two and four positives; one and three of their tops are relevant, four of ten items are new."""
    labels = torch.zeros(2, 20)
    labels[0, [0, 15]] = 1
    labels[1, [9, 1, 2, 19]] = 1
    lists = torch.stack([torch.arange(10), torch.arange(9, -1, -1)])
    base = lists.clone()
    base[:, 6:] = torch.tensor([16, 17, 18, 19])
    found = measure(labels, lists, base)
    expected = {
        "recall@1": (1 / 2 + 1 / 4) / 2,
        "recall@10": (1 / 2 + 3 / 4) / 2,
        "novelty@10": 0.4,
        "precision@1": 1.0,
        "precision@5": (1 / 5 + 1 / 5) / 2,
    }
    assert found == pytest.approx(expected)


def test_the_command_judges_every_policy_and_keeps_its_seeds(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["pg-ret", "--budget", "smoke", "--shared", str(folder), "--results", str(tmp_path), "--json"]
    assert main(OfflineEval, "python -m offline_eval", options) == 0
    out, err = capsys.readouterr()
    assert err.split() == ["seed", "1", "seed", "2"]
    result = last_json(out)
    policies = result["policies"]
    goals = [f"pg-ret, {goal}" for goal in GOALS]
    assert list(policies) == ["base", "supervised (infonce)", *goals, "reward's oracle", "best possible"]
    assert all(set(of) == set(MEASURES) for of in policies.values())
    assert policies["base"]["novelty@10"]["mean"] == 0
    assert policies["best possible"]["precision@5"]["mean"] == 1
    assert 0.6 < policies["reward's oracle"]["precision@5"]["mean"] < 0.9, "it takes a tenth of 60 for relevant"
    assert main(OfflineEval, "python -m offline_eval", options) == 0
    out, err = capsys.readouterr()
    assert not err, "nothing was run again"
    assert last_json(out) == result


def test_novelty_is_sought_until_it_is_there(folder: Path, tmp_path: Path) -> None:
    data = folder / "data" / "kuairec" / "small_matrix_semisynthetic.npz"
    world = read_world(data)
    question = Question(data, world, (world.expected_reward > 2).float(), 1.5)
    learner = advanced(settle(settings(question, **INFONCE, steps=200)).begin(), 200)
    learner.save(tmp_path / "init")
    base = top_of(learner.policy, world, LIST)
    config = settings(question, estimator="pg-ret", init=tmp_path / "init", **GOALS["novelty"], steps=300)
    for goal in (0.1, 2.0):
        adapting = settle(config).begin()
        advance_to_novelty(adapting, world, base, goal)
        found = novelty(top_of(adapting.policy, world, LIST), base)
        assert (found >= goal) == (adapting.step < 300)
        assert adapting.step % NOVELTY_EVERY == 0
        assert adapting.step > 0
    assert adapting.step == 300
