"""Simulated users in front of a real server process."""

from pathlib import Path

import pytest

from esr_trainer import feedback_log
from esr_trainer.checkpoint import Checkpoint
from esr_trainer.environments import open_world
from esr_trainer.system import system_of
from offline_eval.procedures.simulated_users import SimulatedUsers
from serving.wire import retrieval_pb2
from tests.conftest import serving


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("visits") / "feedback.db"


@pytest.fixture(scope="module")
def users(bundles: Path, trained_run: Path, log: Path):
    config = Checkpoint(trained_run).config.model_copy(update={"lsr": "noisy"})
    world = open_world(config.environment, config.data, config.world_seed, config.contexts, config.items)
    with serving(bundles, "--feedback-log", f"sqlite:///{log}") as (_, address):
        users = SimulatedUsers(world, system_of(config, world), address, seed=5)
        yield users
        users.close()


def test_every_visit_is_in_the_log_with_what_was_shown_and_earned(users, log):
    visits = users.visit(130)
    records = list(feedback_log.read(str(log)))
    assert len(records) == visits.num_visits == 130
    world, total = users.world, 0.0
    context_row = {context_id: row for row, context_id in enumerate(world.context_ids)}
    for record in records:
        assert record.shown.mode == "sampled"
        assert len(record.shown.candidates) == 10
        assert len(record.slate) == len(record.lsr_probabilities) == 2
        assert max(record.lsr_probabilities) < 1  # a noisy ranker is sure of nothing
        total += sum(record.rewards)
        row = context_row[record.shown.context_id]
        for item, reward in zip(record.slate, record.rewards, strict=True):
            column = users.row[item]
            assert abs(reward - world.expected_reward[row, column]) < 6 * world.reward_std[row, column]
    assert visits.mean_reward == pytest.approx(total / 130, rel=1e-5)


def test_what_is_served_greedily_is_worth_what_the_checkpoint_is_worth(users, trained_run):
    optimal = users.system._replace(ranker=system_of(Checkpoint(trained_run).config, users.world).ranker)
    users.system, noisy = optimal, users.system
    try:
        assert users.policy_value() == pytest.approx(
            Checkpoint(trained_run).description.metrics["policy_value"], abs=1e-4
        )
    finally:
        users.system = noisy


def test_a_refused_visit_is_an_error(users):
    request = retrieval_pb2.RetrieveRequest(context_id="nobody", num_candidates=10)
    with pytest.raises(RuntimeError, match=r"refused a visit: .*nobody"):
        users.retrieve([request])
