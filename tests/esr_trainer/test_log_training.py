"""`--from-log`: the trainer on logged impressions instead of rounds."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
import torch

from esr_trainer.__main__ import command_line
from esr_trainer.checkpoint import Checkpoint, checkpoints
from esr_trainer.command_line import main
from esr_trainer.config import OFF_POLICY, TrainConfig
from esr_trainer.environments import open_world
from esr_trainer.feedback_log import Feedback, FeedbackLog, Shown, read
from esr_trainer.log_training import LogTrainer, held_out_metrics
from esr_trainer.logged_batches import Parts, open_log
from esr_trainer.preparation import prepare
from esr_trainer.training import greedy_values
from offline_eval.__main__ import OfflineEval
from serving import Query, Retriever
from serving.export import export
from tests.conftest import last_json
from tests.esr_trainer.test_training import same_checkpoint

WORLD = ["--environment", "synthetic", "--contexts", "80", "--items", "60"]
SMALL = ["--candidates", "5", "--experts", "1", "--batch", "64", "--learning-rate", "0.03"]
TRUTH = open_world("synthetic", None, 0, contexts=80, items=60)
ROUNDS = 4000


def label(context: int, item: int) -> float:
    """1 for the best tenth of a context's items."""
    rewards = TRUTH.expected_reward[context]
    return float(rewards[item] >= rewards.topk(6).values[-1])


@pytest.fixture(scope="module")
def served_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a server of an untrained ESR shows: sampled candidates, one of them at random, and its label."""
    folder = tmp_path_factory.mktemp("served")
    options = [*WORLD, *SMALL, "--steps", "1", "--out", str(folder / "untrained")]
    assert command_line(options) == 0
    export(folder / "untrained", folder / "bundles")
    retriever = Retriever.open(folder / "bundles")
    generator = torch.Generator().manual_seed(0)
    with FeedbackLog.open(str(folder / "feedback.db")) as log:
        log.record([shown_round(retriever, number, generator) for number in range(ROUNDS)])
    return folder / "feedback.db"


def shown_round(retriever: Retriever, number: int, generator: torch.Generator) -> Feedback:
    context = number % 80
    answer = retriever.retrieve(Query(str(context), 5, seed=number))
    item = answer.item_ids[int(torch.randint(5, (), generator=generator))]
    shown = Shown(
        request_id=f"round-{number}",
        model_id="untrained",
        model_version=1,
        mode="sampled",
        context_id=str(context),
        candidates=tuple(answer.item_ids),
        inclusion_propensities=tuple(map(float, answer.inclusion_propensities)),
        log_probability=float(answer.log_probability),
        experts=tuple(map(int, answer.experts)),
    )
    return Feedback(shown, (item,), (0.2,), (label(context, int(item)),), datetime.now(UTC))


def run(out: Path, log: Path, estimator: str, *options: str) -> Path:
    given = ["--from-log", str(log), "--estimator", estimator, *SMALL, "--sets", "10", "--set-size", "5"]
    assert command_line([*given, *options, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("estimator", OFF_POLICY)
def test_every_loss_learns_from_a_served_log(
    estimator: str, served_log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "run", served_log, estimator, "--steps", "200", "--json")
    result = last_json(capsys.readouterr().out)
    assert result["held_out_recall"] > result["popularity_held_out_recall"] + 0.1
    assert result["held_out_recall"] > result["initial_held_out_recall"] + 0.1
    assert result["ips_value_low"] < result["ips_value"] < result["ips_value_high"]
    assert "policy_value" not in result, "nobody knows it"


def test_from_a_served_log_to_retrieve(served_log: Path, tmp_path: Path) -> None:
    """What is retrieved is each user's own, and of what nobody showed them holds more that they like than popularity's.

    Popularity is the log's: the items of the most rewards by inverse propensity.
    """
    export(run(tmp_path / "run", served_log, "ca-poisson-ips", "--steps", "300"), tmp_path / "bundles")
    retriever, log = Retriever.open(tmp_path / "bundles"), open_log(str(served_log))
    seen: dict[str, list[str]] = {str(user): [] for user in range(80)}
    for row in impressions(served_log):
        seen[row["context_id"]].append(row["item_id"])
    earned = torch.zeros(60).index_add_(
        0, log.impressions.items, log.impressions.rewards / log.impressions.propensities
    )
    by_popularity = [log.item_ids[row] for row in earned.argsort(descending=True)]
    popular = {user: [item for item in by_popularity if item not in seen[user]][:5] for user in seen}
    own = {user: retriever.retrieve(Query(user, 5, excluded=seen[user])).item_ids for user in seen}
    assert len({tuple(items) for items in own.values()}) > 60
    found, found_by_popularity = (
        sum(label(int(user), int(item)) for user, items in lists.items() for item in items) for lists in (own, popular)
    )
    assert found > 1.15 * found_by_popularity > 0


def impressions(log: Path) -> list[dict[str, str]]:
    return [{"context_id": one.shown.context_id, "item_id": one.slate[0]} for one in read(str(log))]


@pytest.mark.parametrize("estimator", ["two-stage-ips", "ca-poisson-ips", "infonce"])
def test_a_resumed_run_is_the_run_that_never_stopped(estimator: str, served_log: Path, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", served_log, estimator, "--steps", "30", "--checkpoint-every", "10")
    halves = run(tmp_path / "halves", served_log, estimator, "--steps", "20", "--checkpoint-every", "10")
    run(halves, served_log, estimator, "--steps", "30", "--checkpoint-every", "10")
    same_checkpoint(whole, halves)
    assert Checkpoint(whole).description.metrics == Checkpoint(halves).description.metrics


def test_another_log_is_another_run(served_log: Path, tmp_path: Path, refused: Callable[[int], str]) -> None:
    out = run(tmp_path / "run", served_log, "ce", "--steps", "2")
    rows = pl.DataFrame(impressions(served_log)).with_columns(reward=pl.lit(1))
    rows.write_csv(tmp_path / "other.csv")
    given = ["--from-log", str(tmp_path / "other.csv"), "--estimator", "ce", *SMALL, "--sets", "10", "--set-size", "5"]
    assert "holds a run with world_fingerprint" in refused(command_line([*given, "--steps", "2", "--out", str(out)]))
    assert "needs propensities" in refused(
        command_line(["--from-log", str(tmp_path / "other.csv"), "--estimator", "ips", *SMALL])
    )


def test_seeds_side_by_side_are_each_the_run_alone(served_log: Path, tmp_path: Path) -> None:
    run(tmp_path / "both", served_log, "two-stage-ips", "--steps", "20", "--seeds", "2")
    alone = run(tmp_path / "alone", served_log, "two-stage-ips", "--steps", "20", "--seed", "1")
    one, other = (Checkpoint(path).policy().state_dict() for path in (tmp_path / "both" / "seed-1", alone))
    for name, table in one.items():
        torch.testing.assert_close(table, other[name], rtol=0, atol=1e-5)


def test_with_a_world_the_policy_value_is_known_and_compared(
    served_log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(tmp_path / "run", served_log, "ips", *WORLD, "--lsr", "optimal", "--steps", "200", "--json")
    result = last_json(capsys.readouterr().out)
    assert result["initial_policy_value"] < result["policy_value"] < result["optimal_policy_value"]
    assert result["policy_value"] > result["popularity_policy_value"]
    assert 0 < result["held_out_recall"] < 1
    assert main(OfflineEval, "python -m offline_eval", ["compare", str(out), "--json"]) == 0
    judged = last_json(capsys.readouterr().out)["judged"][1]["policy_value"]["mean"]
    assert judged == pytest.approx(result["policy_value"])


def test_without_a_world_there_is_nothing_to_compare_in(
    served_log: Path, tmp_path: Path, refused: Callable[[int], str]
) -> None:
    out = run(tmp_path / "run", served_log, "ce", "--steps", "1")
    line = refused(main(OfflineEval, "python -m offline_eval", ["compare", str(out)]))
    assert "was trained from a log alone: name a world with --data" in line


def test_output_for_people(served_log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(tmp_path / "run", served_log, "ips", "--steps", "100")
    text, err = capsys.readouterr()
    for words in ("recall@5", "popularity", "before training", "by inverse propensities", "95 % interval", "next:"):
        assert words in text
    assert "log: feedback.db, 4,000 impressions of 60 items in 80 contexts" in " ".join(err.split())
    assert len(checkpoints(out)) == 1
    row = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"held_out_recall", "held_out_log_loss", "ips_value", "loss", "gradient_norm"} <= row.keys()


def test_the_ips_value_is_the_policy_value_in_expectation(served_log: Path, tmp_path: Path) -> None:
    """Every pair was shown once with propensity 1 / 60 and its expected reward: the estimate is the policy value."""
    rewards = TRUTH.expected_reward
    rows = {
        "context_id": [str(user) for user in range(80) for _ in range(60)],
        "item_id": [str(item) for _ in range(80) for item in range(60)],
        "reward": rewards.flatten().tolist(),
        "propensity": [1 / 60] * 4800,
    }
    pl.DataFrame(rows).write_csv(tmp_path / "log.csv")
    given = {"from_log": str(tmp_path / "log.csv"), "estimator": "ips", "candidates": 5, "lsr": "noisy", "experts": 2}
    given |= {"environment": "synthetic", "contexts": 80, "items": 60}
    learner, _ = prepare(TrainConfig.model_validate(given), tmp_path / "run")
    assert isinstance(learner, LogTrainer)
    whole = learner.ground._replace(parts=Parts(learner.ground.log.impressions, learner.ground.log.impressions))
    value = float(greedy_values(TRUTH, whole.system, learner.policy).mean())
    assert held_out_metrics(whole, learner.policy)["ips_value"] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--estimator", "ips"], "estimator (ips) learns from a log: name it with --from-log"),
        (
            ["--from-log", "x", "--estimator", "top1"],
            "estimator (top1) interacts with a world: --from-log takes ce,",
        ),
        (
            ["--from-log", "x", "--estimator", "ips", "--variance-reduction", "grpo"],
            "variance_reduction (grpo) is for rounds that are played: leave it out with --from-log",
        ),
        (
            ["--from-log", "x", "--estimator", "ips", "--learning-rate-scale", "propensity"],
            "learning_rate_scale (propensity) is for rounds that are played",
        ),
        (["--from-log", "x", "--estimator", "ips", "--device", "cuda"], "device (cuda) is for rounds that are played"),
        (["--from-log", "x", "--estimator", "ips", "--lsr", "noisy"], "lsr (noisy) goes by a world's rewards: name"),
    ],
)
def test_what_does_not_fit_together_is_one_line(
    options: list[str], says: str, tmp_path: Path, refused: Callable[[int], str]
) -> None:
    assert says in refused(command_line([*options, "--out", str(tmp_path / "run")]))
    assert not (tmp_path / "run").exists()


def test_too_many_candidates_for_the_log_are_refused(served_log: Path, refused: Callable[[int], str]) -> None:
    line = refused(command_line(["--from-log", str(served_log), "--estimator", "ce", "--candidates", "61"]))
    assert "candidates (61) exceeds the data's 60 items" in line


def test_infonce_learns_from_a_world_s_positives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*WORLD, *SMALL, "--estimator", "infonce", "--relevance.relevant-above", "5", "--steps", "150", "--json"]
    assert command_line([*options, "--out", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    result = last_json(out)
    count = int((TRUTH.expected_reward > 5).sum())
    assert f"{count:,} relevant pairs of" in " ".join(err.split())
    assert result["policy_value"] > result["popularity_policy_value"] + 0.5
    assert "ips_value" not in result, "nothing was drawn"


def test_infonce_refuses_what_it_cannot_learn_from(refused: Callable[[int], str]) -> None:
    given = [*WORLD, *SMALL, "--estimator", "infonce"]
    assert "relevance.relevant_above (99.0): no" in refused(command_line([*given, "--relevance.relevant-above", "99"]))
    line = refused(command_line([*given, "--relevance.oracle", "http://localhost:1"]))
    assert "infonce without --from-log learns from the world's labels" in line
    assert "variance_reduction (grpo) is for rounds that are played: leave it out with --estimator infonce" in refused(
        command_line([*given, "--variance-reduction", "grpo"])
    )
