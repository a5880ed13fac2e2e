"""Checkpoints judged by logs: served ones against the known value, plain ones against what the log earned."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from esr_trainer.command_line import UsageError, main
from esr_trainer.policy import sample_candidates
from offline_eval.__main__ import OfflineEval
from offline_eval.logs.log_evaluation import LOGGED_POLICY, LogQuestion, evaluate, evaluate_log
from offline_eval.logs.log_options import LogOptions
from offline_eval.logs.target_policies import TargetPolicy, open_policy
from tests.conftest import last_json
from tests.offline_eval.conftest import WORLD


def sampled_value(path: Path) -> float:
    """Expected reward of two random candidates of five that are drawn, over 400 draws per context."""
    contexts = np.arange(60)
    logits = torch.from_numpy(open_policy(path).logits(contexts)).repeat(400, 1, 1)
    drawn = sample_candidates(logits, 5, torch.Generator().manual_seed(0))
    return 2 * float(WORLD.expected_rewards(torch.from_numpy(contexts).repeat(400), drawn).mean())


def test_a_better_checkpoint_is_promoted_by_the_log_of_a_worse_one(served_runs: Path) -> None:
    found = evaluate_log(
        LogQuestion(str(served_runs / "feedback.db")), [served_runs / "better", served_runs / "logged"]
    )
    assert (found.kind, found.num_rounds, found.baseline) == ("feedback", 1500, LOGGED_POLICY)
    better, logged = found.judged
    first = better.estimated[0]
    assert first.estimator == "sn-inclusion"
    assert first.value.low < sampled_value(served_runs / "better") < first.value.high
    assert first.value.high - first.value.low < 1.5
    assert better.verdict.decision == "promote"
    assert better.verdict.difference == first.difference
    assert first.difference.mean == pytest.approx(first.value.mean - found.logged_value.mean)
    assert logged.estimated[0].value.mean == pytest.approx(found.logged_value.mean, abs=1e-6)
    assert logged.verdict.decision == "hold"
    assert found.calibration is not None
    assert found.calibration.num_items == 40
    assert found.confidence == pytest.approx(1 - 0.05 / 2), "of two candidates"


def test_the_baseline_may_be_a_bundle_and_the_difference_is_paired(served_runs: Path) -> None:
    log = LogQuestion(str(served_runs / "feedback.db"), options=LogOptions(interval="t"))
    found = evaluate_log(log, [served_runs / "logged"], served_runs / "better")
    (judged,) = found.judged
    assert judged.verdict.decision == "reject"
    against_itself = evaluate_log(log, [served_runs / "logged"], served_runs / "bundles").judged[0]
    for estimated in against_itself.estimated:
        assert estimated.difference == pytest.approx((0, 0, 0), abs=1e-5)


def test_the_policy_that_logged_is_calibrated_by_decile_and_another_is_not_looked_at(served_runs: Path) -> None:
    log = LogQuestion(str(served_runs / "feedback.db"), options=LogOptions(interval="t"))
    calibration = evaluate_log(log, [served_runs / "better"], served_runs / "logged").calibration
    assert calibration is not None
    assert sum(decile.num_pairs for decile in calibration.deciles) == 1000 * 40, "of the first page"
    for decile in calibration.deciles:
        error = (decile.predicted * (1 - decile.predicted) / decile.num_pairs) ** 0.5
        assert abs(decile.observed - decile.predicted) < 4 * error + 0.02 * decile.predicted
    other = evaluate_log(log, [served_runs / "logged"], served_runs / "better").calibration
    assert other is not None
    assert other.deciles == ()


def test_thin_overlap_holds(served_runs: Path) -> None:
    question = LogQuestion(str(served_runs / "feedback.db"), options=LogOptions(estimators=("candidate-set",)))
    (judged,) = evaluate_log(question, [served_runs / "better"]).judged
    assert judged.verdict.decision == "hold"
    assert "effective sample size" in judged.verdict.because


def plain_log(path: Path, num_rounds: int) -> TargetPolicy:
    """A log of 3 contexts and 4 items, drawn from known probabilities; give the policy of another softmax."""
    generator = np.random.default_rng(0)
    logging = generator.dirichlet(np.full(4, 5.0), 3)
    contexts = generator.integers(3, size=num_rounds)
    items = np.array([generator.choice(4, p=logging[context]) for context in contexts])
    rewards = (generator.random(num_rounds) < PLAIN_REWARD[contexts, items]).astype(float)
    table = {
        "context_id": [f"u{context}" for context in contexts],
        "item_id": [f"i{item}" for item in items],
        "reward": rewards,
        "propensity": logging[contexts, items],
    }
    pl.DataFrame(table).write_csv(path)
    logits = np.log(PLAIN_TARGET)
    return TargetPolicy("target", ("u0", "u1", "u2"), ("i0", "i1", "i2", "i3"), 1, lambda rows: logits[rows][:, None])


PLAIN_REWARD = np.random.default_rng(1).random((3, 4))
PLAIN_TARGET = np.random.default_rng(2).dirichlet(np.full(4, 3.0), 3)


def test_every_item_estimator_finds_the_value_of_a_plain_log(tmp_path: Path) -> None:
    policy = plain_log(tmp_path / "log.csv", 4000)
    names = ("snips", "ips", "clipped-ips", "dm", "dr", "sndr", "switch-dr", "dros", "sips", "rips")
    options = LogOptions(estimators=names, interval="t")
    found = evaluate(LogQuestion(str(tmp_path / "log.csv"), options=options), [policy])
    value = float((PLAIN_TARGET * PLAIN_REWARD).sum(axis=1).mean())
    estimates = {estimated.estimator: estimated.value for estimated in found.judged[0].estimated}
    for name in names:
        assert estimates[name].mean == pytest.approx(value, abs=0.04), name
    assert width(estimates["dr"]) < 0.95 * width(estimates["ips"])


def width(estimate) -> float:
    return estimate.high - estimate.low


def test_empirical_bernstein_is_told_the_largest_weight(tmp_path: Path) -> None:
    policy, log = plain_log(tmp_path / "log.csv", 500), str(tmp_path / "log.csv")
    with pytest.raises(UsageError, match="ips needs largest_weight"):
        evaluate(LogQuestion(log, options=LogOptions(estimators=("ips",), interval="empirical-bernstein")), [policy])
    options = LogOptions(estimators=("ips", "clipped-ips"), interval="empirical-bernstein", largest_weight=20, clip=2)
    ips, clipped = evaluate(LogQuestion(log, options=options), [policy]).judged[0].estimated
    t = (
        evaluate(LogQuestion(log, options=LogOptions(estimators=("ips",), interval="t")), [policy])
        .judged[0]
        .estimated[0]
    )
    assert width(t.value) < width(clipped.value) < width(ips.value)
    assert width(t.difference) < width(ips.difference)
    # against itself nothing varies: 2 x 7 b ln 80 / (3 x 499) is left, of two spreads of 20 times a range of 1
    (alone,) = evaluate(LogQuestion(log, options=options), [policy], policy).judged[0].estimated[:1]
    assert width(alone.difference) == pytest.approx(2 * 7 * 40 * np.log(80) / (3 * 499), rel=1e-3)


def test_pages_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, log = plain_log(tmp_path / "log.csv", 900), str(tmp_path / "log.csv")
    options = LogOptions(estimators=("snips", "dr", "replay"), interval="t")
    whole = evaluate(LogQuestion(log, options=options), [policy], policy)
    monkeypatch.setattr("offline_eval.logs.logged_tables.PAGE", 70)
    paged = evaluate(LogQuestion(log, options=options), [policy], policy)
    for one, other in zip(whole.judged[0].estimated, paged.judged[0].estimated, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-9)


def test_what_a_log_cannot_tell_is_refused(tmp_path: Path, served_runs: Path) -> None:
    policy, log = plain_log(tmp_path / "log.csv", 50), str(tmp_path / "log.csv")
    with pytest.raises(UsageError, match=r"estimator \(inclusion\) needs log inclusion ratios"):
        evaluate(LogQuestion(log, options=LogOptions(estimators=("inclusion",))), [policy])
    with pytest.raises(UsageError, match=r"estimators \(dm\) has no weights"):
        evaluate(LogQuestion(log, options=LogOptions(estimators=("dm", "dr"))), [policy])
    with pytest.raises(UsageError, match=r"estimator \(dr\) needs log ratios"):
        evaluate_log(
            LogQuestion(str(served_runs / "feedback.db"), options=LogOptions(estimators=("dr",))),
            [served_runs / "better"],
        )
    with pytest.raises(UsageError, match=r"no policy knows item_id \(i3\)"):
        evaluate(
            LogQuestion(log, options=LogOptions(estimators=("dr",))),
            [policy._replace(item_ids=("i0", "i1", "i2", "z"))],
        )


def test_the_command_ends_with_the_verdict_of_the_best(served_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = ("--log", served_runs / "feedback.db")
    assert compare(served_runs / "better", *log, "--baseline", served_runs / "bundles", "--json") == 0
    out = capsys.readouterr().out
    result = last_json(out)
    assert "verdict: promote" in out
    assert "sn-inclusion" in out
    assert (result["exit_code"], result["baseline"]) == (0, str(served_runs / "bundles"))
    assert result["judged"][0]["estimated"][0]["overlap"]["num_rounds"] == 1500
    assert compare(served_runs / "logged", *log, "--logged.interval", "t", "--logged.estimators", "inclusion") == 3
    assert "intervals by t" in capsys.readouterr().out
    assert compare(served_runs / "logged", *log, "--baseline", served_runs / "better") == 4


def test_replays_options_do_not_go_with_a_log(
    served_runs: Path, refused: Callable[[int], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "slate is for replay" in refused(
        compare(served_runs / "better", "--log", served_runs / "feedback.db", "--slate", 1)
    )
    assert "cannot be read: No such file" in refused(compare(served_runs / "better", "--log", served_runs / "none.db"))
    assert "margin" in refused(compare(served_runs / "better", "--log", served_runs / "feedback.db", "--margin", "-1"))


def compare(*arguments: object) -> int:
    return main(OfflineEval, "python -m offline_eval", ["compare", *map(str, arguments)])
