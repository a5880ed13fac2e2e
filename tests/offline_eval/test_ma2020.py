"""The procedure of Ma et al. on a small world of labels, in full."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from esr_trainer.command_line import UsageError, main
from esr_trainer.features import id_features
from esr_trainer.world import World
from offline_eval.__main__ import OfflineEval
from offline_eval.procedures import ma2020
from offline_eval.procedures.labelled_worlds import LabelledWorld
from offline_eval.procedures.ma2020 import (
    POPULAR,
    RANDOM,
    RANKER,
    REFERENCES,
    RIVALS,
    SAMPLES,
    Budget,
    Feedback,
    Judged,
    bandit_log,
    best_rates,
    experiment,
    feedback_of,
    ground_of,
    of_result,
    references,
    run_one,
)
from offline_eval.procedures.ranked_labels import CUTS

BUDGET = Budget(runs=2, tuning_runs=1, steps=20, learning_rates=(0.001, 0.1))


@pytest.fixture(scope="module")
def labelled() -> LabelledWorld:
    """60 users of two tastes; each likes a quarter of 80 items, half of them the other taste's too."""
    labels = torch.zeros(60, 80)
    labels[:30, :20] = 1
    labels[30:, 10:30] = 1
    users, items = tuple(map(str, range(60))), tuple(map(str, range(80)))
    world = World("kuairec", "two tastes", users, items, labels, labels, torch.zeros(60, 80), "two tastes")
    return LabelledWorld(world, id_features(users), id_features(items))


@pytest.fixture(scope="module")
def feedback(labelled: LabelledWorld) -> Feedback:
    return feedback_of(labelled, 0)


@pytest.fixture(scope="module")
def judged(labelled: LabelledWorld) -> list[Judged]:
    return list(experiment(labelled, BUDGET, []))


def test_the_log_is_drawn_from_the_logging_policy_with_its_propensities(feedback: Feedback) -> None:
    impressions = feedback.ground.log.impressions
    assert impressions.contexts.tolist() == [user for user in range(60) for _ in range(SAMPLES)]
    chance = feedback.logging(impressions.contexts)[:, 0].softmax(dim=1)
    torch.testing.assert_close(impressions.propensities, chance.gather(1, impressions.items[:, None])[:, 0].detach())
    assert torch.equal(
        impressions.rewards, feedback.labelled.world.expected_reward[impressions.contexts, impressions.items]
    )
    again = bandit_log(feedback.labelled.world, feedback.logging, 0)
    assert torch.equal(again.impressions.items, impressions.items)


def test_runs_learn_from_rewarded_samples_and_stop_by_others(feedback: Feedback) -> None:
    parts, impressions = feedback.ground.parts, feedback.ground.log.impressions
    rewarded = int(impressions.rewards.sum())
    assert len(parts.held_out.rewards) == round(ma2020.HELD_OUT * rewarded)
    assert len(parts.learned.rewards) + len(parts.held_out.rewards) == rewarded
    assert bool(parts.learned.rewards.all())
    assert bool(parts.held_out.rewards.all())


def test_a_log_with_too_few_rewards_is_refused_in_one_line(feedback: Feedback) -> None:
    log, system = feedback.ground.log, feedback.ground.system
    unrewarded = replace(log, impressions=log.impressions._replace(rewards=torch.zeros_like(log.impressions.rewards)))
    with pytest.raises(UsageError, match="bandit samples: 0 are rewarded, too few"):
        ground_of(unrewarded, system, None, 0)


def test_the_popular_list_is_of_the_log_and_the_others_are_what_they_say(feedback: Feedback) -> None:
    found = {one.policy: one.measures for one in references(feedback, 0)}
    assert set(found) == set(REFERENCES)
    impressions = feedback.ground.log.impressions
    counted = torch.bincount(impressions.items, weights=impressions.rewards.double(), minlength=80)
    hits = feedback.labelled.world.expected_reward[:, counted.topk(5).indices].mean()
    assert found[POPULAR]["one-stage precision@5"] == pytest.approx(float(hits))
    assert found[RANKER]["one-stage ndcg@10"] == found[RANKER]["two-stage ndcg@10"], "it is in its own order"
    assert abs(found[RANDOM]["one-stage precision@10"] - 0.25) < 0.1


def test_every_item_has_a_bias_by_a_feature_that_all_contexts_share(labelled: LabelledWorld) -> None:
    contexts, items = labelled.towers
    assert set(contexts.bags) == {"id", "everybody"}
    assert set(items.bags) == {"id"}
    assert contexts.bags["everybody"].tolist() == [[0]] * 60


def test_every_loss_is_run_at_both_rates_and_then_at_its_own_on_other_seeds(judged: list[Judged]) -> None:
    rates = best_rates(judged, BUDGET, CUTS)
    result = of_result(judged, BUDGET, CUTS)
    assert set(result) == {*RIVALS, *REFERENCES}
    for policy, own in result.items():
        assert [one.seed for one in own] == [0, 1]
        assert all(len(one.measures) == 2 * 3 * 2 for one in own)
        assert {one.learning_rate for one in own} == {rates.get(policy, 0.0)}
    assert len(judged) == 6 * 2 + 6 * 2 + 4 * 2
    for policy in RIVALS:
        tuned = {one.learning_rate: one for one in judged if one.policy == policy and one.seed >= ma2020.TUNING_SEED}
        assert rates[policy] == max(tuned, key=lambda rate: tuned[rate].measures["one-stage ndcg@10"])


def test_what_is_known_is_not_run_again_and_a_run_is_decided_by_its_seed(
    labelled: LabelledWorld, judged: list[Judged]
) -> None:
    assert list(experiment(labelled, BUDGET, judged)) == []
    again = list(experiment(labelled, BUDGET, judged[:-1]))
    assert again == judged[-1:]


def test_what_is_learned_beats_a_random_list(feedback: Feedback) -> None:
    for policy in ("ce", "ca-poisson-ips"):
        measures = run_one(feedback, policy, 0, 60, 0.1).measures
        assert measures["one-stage precision@5"] > 0.5
        assert measures["two-stage precision@5"] > 0.5


def test_two_stage_lists_are_the_rankers_order_of_the_candidates(feedback: Feedback) -> None:
    # candidates: the liked ones, then the first
    best_first = feedback.labelled.world.expected_reward + torch.linspace(0.5, 0, 80)
    lowest_first = feedback.ground.system._replace(scores=lambda rows, items: -items.float())
    ground = feedback.ground._replace(system=lowest_first)
    found = ma2020.judge(feedback._replace(ground=ground), lambda rows: best_first[rows])
    assert found["one-stage precision@10"] == 1
    assert found["two-stage precision@5"] == 0.5, "the other taste's own items are no candidates of theirs first"


def test_the_command_refuses_data_and_results_that_do_not_fit(
    tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*options: str) -> str:
        assert main(OfflineEval, "python -m offline_eval", ["ma2020", "--results", str(tmp_path), *options]) == 2
        return capsys.readouterr().err

    assert refused("--data", "nowhere.npz") == "error: data (nowhere.npz) is not a file\n"
    ratios = shared / "data" / "kuairec" / "small_matrix_semisynthetic.npz"
    assert "holds rewards that are no labels, 0 or 1: take small_matrix_gt2.npz" in refused("--data", str(ratios))
    (tmp_path / "ma2020.json").write_text(json.dumps({"world": "xmc", "runs": []}))
    labels = shared / "data" / "kuairec" / "small_matrix_gt2.npz"
    assert "are of another world, xmc: name another folder" in refused("--data", str(labels))
