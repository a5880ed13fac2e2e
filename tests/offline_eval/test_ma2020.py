"""The procedure of Ma et al. on a small world of labels, in full."""

from pathlib import Path

import pytest
import torch

from esr_trainer.world import World
from offline_eval import ma2020
from offline_eval.ma2020 import (
    LOGGING,
    MEASURES,
    POPULAR,
    RIVALS,
    SAMPLES,
    Budget,
    Judged,
    best_rates,
    experiment,
    feedback_of,
    of_result,
    run_one,
)

BUDGET = Budget(runs=2, tuning_runs=1, steps=20, learning_rates=(0.001, 0.1))


@pytest.fixture(scope="module")
def world() -> World:
    """60 users of two tastes; each likes a quarter of 80 items, half of them the other taste's too."""
    labels = torch.zeros(60, 80)
    labels[:30, :20] = 1
    labels[30:, 10:30] = 1
    ids = (tuple(map(str, range(60))), tuple(map(str, range(80))))
    return World("kuairec", "two tastes", *ids, labels, labels, torch.zeros(60, 80), "two tastes")


@pytest.fixture(scope="module")
def judged(world: World) -> list[Judged]:
    return list(experiment(world, BUDGET, []))


def test_the_log_is_drawn_from_the_logging_policy_with_its_propensities(world: World) -> None:
    feedback = feedback_of(world, 0)
    showings = feedback.ground.log.showings
    assert showings.contexts.tolist() == [user for user in range(60) for _ in range(SAMPLES)]
    chance = feedback.logging(showings.contexts)[:, 0].softmax(dim=1)
    torch.testing.assert_close(showings.propensities, chance.gather(1, showings.items[:, None])[:, 0].detach())
    assert torch.equal(showings.rewards, world.expected_reward[showings.contexts, showings.items])
    assert float(showings.rewards.mean()) > 0.26, "it learned a little: a random item is liked by a quarter"


def test_every_loss_is_run_at_both_rates_and_then_at_its_own_on_other_seeds(judged: list[Judged]) -> None:
    rates = best_rates(judged, BUDGET)
    result = of_result(judged, BUDGET)
    assert set(result) == {*RIVALS, LOGGING, POPULAR}
    for policy, own in result.items():
        assert [one.seed for one in own] == [0, 1]
        assert all(set(one.measures) == set(MEASURES) for one in own)
        assert {one.learning_rate for one in own} == {rates.get(policy, 0.0)}
    assert len(judged) == 6 * 2 + 6 * 2 + 2 * 2
    for policy in RIVALS:
        tuned = {one.learning_rate: one for one in judged if one.policy == policy and one.seed >= ma2020.TUNING_SEED}
        assert rates[policy] == max(tuned, key=lambda rate: tuned[rate].measures[ma2020.CHOSEN_BY])


def test_what_is_known_is_not_run_again_and_a_run_is_decided_by_its_seed(world: World, judged: list[Judged]) -> None:
    assert list(experiment(world, BUDGET, judged)) == []
    again = list(experiment(world, BUDGET, judged[:-1]))
    assert again == judged[-1:]


def test_what_is_learned_beats_a_random_list(world: World) -> None:
    for policy in ("ce", "ca-poisson-ips"):
        measures = run_one(world, policy, 0, 60, 0.1).measures
        assert measures["one-stage precision@5"] > 0.5
        assert measures["two-stage precision@5"] > 0.5


def test_two_stage_lists_are_the_rankers_order_of_the_candidates(world: World) -> None:
    feedback = feedback_of(world, 0)
    best_first = world.expected_reward + torch.linspace(0.5, 0, 80)  # candidates: the liked ones, then the first
    perfect = feedback.ground.system._replace(scores=lambda rows, items: -items.float())
    found = ma2020.judge(feedback._replace(ground=feedback.ground._replace(system=perfect)), best_first)
    assert found["one-stage precision@10"] == 1
    assert found["two-stage precision@5"] == 0.5, "the other taste's own items are no candidates of theirs first"


def test_the_command_keeps_its_runs(tmp_path: Path, shared: Path) -> None:
    from esr_trainer.command_line import main
    from offline_eval.__main__ import OfflineEval

    options = ["ma2020", "--shared", str(tmp_path), "--results", str(tmp_path)]
    assert main(OfflineEval, "python -m offline_eval", options) == 2, "there is no data"
