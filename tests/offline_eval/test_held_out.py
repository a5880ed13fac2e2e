from pathlib import Path

import numpy as np
import pytest

from esr_trainer.command_line import UsageError
from esr_trainer.config import TrainConfig
from offline_eval.reproduce.held_out import LEARNERS, split

USERS, VIDEOS, GROUPS = 60, 40, 4


@pytest.fixture
def grouped(tmp_path: Path) -> TrainConfig:
    """A world where users like the videos of their own group, and tables that name the groups."""
    rows = [
        f"{user},{video},{2.0 if user % GROUPS == video % GROUPS else 0.2}"
        for user in range(USERS)
        for video in range(VIDEOS)
    ]
    (tmp_path / "matrix.csv").write_text("user_id,video_id,watch_ratio\n" + "\n".join(rows))
    write_groups(tmp_path / "users.csv", np.arange(USERS) % GROUPS)
    write_groups(tmp_path / "videos.csv", np.arange(VIDEOS) % GROUPS)
    return TrainConfig(
        estimator="ca-poisson",
        data=tmp_path / "matrix.csv",
        context_features=tmp_path / "users.csv",
        item_features=tmp_path / "videos.csv",
        candidates=2,
        experts=1,
        steps=150,
        evaluate_every=50,
        learning_rate=0.05,
        batch=64,
    )


def write_groups(path: Path, groups: np.ndarray) -> None:
    path.write_text("id,group\n" + "\n".join(f"{row},g{group}" for row, group in enumerate(groups)))


def test_a_split_is_complete_and_disjoint() -> None:
    learned, held_out = split(50, seed=1)
    assert len(held_out) == 10
    assert sorted([*learned.tolist(), *held_out.tolist()]) == list(range(50))


@pytest.mark.parametrize("learner", LEARNERS)
def test_what_was_never_met_is_known_by_its_features(learner: str, grouped: TrainConfig) -> None:
    curve = LEARNERS[learner](grouped)
    assert curve.references["optimal"] == pytest.approx(2.0)
    assert curve.references["learned"] > 1.9
    assert curve.policy_value[-1] > (1.9 if learner.endswith("by features") else 1.2)


def test_features_that_say_nothing_are_worth_nothing(grouped: TrainConfig) -> None:
    assert grouped.context_features is not None
    write_groups(grouped.context_features, np.random.default_rng(0).permutation(np.arange(USERS) % GROUPS))
    assert LEARNERS["held-out contexts, learned by features"](grouped).policy_value[-1] < 1.5


def test_ids_alone_cannot_say_anything_of_a_new_row(grouped: TrainConfig) -> None:
    config = grouped.model_copy(update={"context_features": None})
    with pytest.raises(UsageError, match="known by their features alone"):
        LEARNERS["held-out contexts, learned by features"](config)
