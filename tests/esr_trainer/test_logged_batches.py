from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
import torch

from esr_trainer.__main__ import command_line
from esr_trainer.command_line import UsageError
from esr_trainer.environments import open_world
from esr_trainer.feedback_log import Feedback, FeedbackLog
from esr_trainer.feedback_parquet import export
from esr_trainer.logged_batches import hold_out, open_log
from tests.feedback_writer import BEGAN, feedback
from tests.postgres import PostgresServer


def plain(path: Path, count: int = 40) -> Path:
    pl.DataFrame(
        {
            "context_id": [f"u{number % 4}" for number in range(count)],
            "item_id": [f"{number % 5:03}" for number in range(count)],
            "reward": [number % 2 for number in range(count)],
            "propensity": [0.25] * count,
        }
    ).write_csv(path)
    return path


def sampled(number: int, reward: float = 1.0) -> Feedback:
    """Round `number`, sampled: item-1 had inclusion 1/2 and LSR probability 0.4, item-0 had 1 and 0.6."""
    one = feedback(0, 3)
    shown = one.shown._replace(request_id=f"sampled-{number}", context_id=f"user-{number % 3}")
    return one._replace(
        shown=shown, lsr_probabilities=(0.4, 0.6), rewards=(reward, 0.0), time=BEGAN + timedelta(seconds=number)
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "feedback.db"
    nameless = sampled(98)
    nameless = nameless._replace(shown=nameless.shown._replace(context_id=""))
    records = [*map(sampled, range(20)), feedback(1), feedback(3), nameless]
    records.append(sampled(99)._replace(lsr_probabilities=()))
    with FeedbackLog.open(str(path)) as log:
        log.record(records)
    return path


def test_beta_of_a_served_log_is_inclusion_times_the_lsrs_probability(
    served: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = open_log(str(served))
    assert log.context_ids == ("user-0", "user-1", "user-2")
    assert {"item-0", "item-1", "item-2", "item-6"} <= set(log.item_ids), "candidates that were not shown, too"
    first = log.impressions.take(torch.tensor([0, 1]))
    assert [log.item_ids[row] for row in first.items] == ["item-1", "item-0"]
    assert first.rewards.tolist() == [1, 0]
    torch.testing.assert_close(first.propensities, torch.tensor([0.5 * 0.4, 1.0 * 0.6]))
    torch.testing.assert_close(first.inclusions, torch.tensor([0.5, 1.0]))
    note = " ".join(capsys.readouterr().err.split())
    refused = "4 of 24 rounds refused: 2 greedy, which have no support, 1 without a context id, 1 without the LSR's"
    assert refused in note


def test_the_same_log_in_parquet_and_postgresql_is_the_same(
    served: Path, tmp_path: Path, postgres: PostgresServer
) -> None:
    export(str(served), tmp_path / "feedback.parquet")
    url = postgres.new_database()
    with FeedbackLog.open(url) as log:
        log.record([*map(sampled, range(20)), feedback(3), feedback(1)])
    one, other = open_log(str(served)), open_log(str(tmp_path / "feedback.parquet"))
    assert one.fingerprint == other.fingerprint
    third = open_log(url)
    assert torch.equal(third.impressions.items, one.impressions.items)
    assert "feedback log" in third.description


def test_a_log_of_greedy_rounds_is_refused_with_their_count(tmp_path: Path, refused: Callable[[int], str]) -> None:
    path = tmp_path / "greedy.db"
    with FeedbackLog.open(str(path)) as log:
        log.record([feedback(number) for number in (1, 3, 5)])
    code = command_line(["--from-log", str(path), "--estimator", "ips", "--out", str(tmp_path / "run")])
    assert "3 of 3 rounds refused: 3 greedy, which have no support" in refused(code)
    assert not (tmp_path / "run").exists()


def test_open_bandit_rows_are_impressions_of_user_features(tmp_path: Path) -> None:
    path = tmp_path / "obd.csv"
    path.write_text(
        ",timestamp,item_id,position,click,propensity_score,user_feature_0,user_feature_1,user-item_affinity_0\n"
        "0,2019-11-24,14,3,0,0.25,young,red,0.0\n1,2019-11-24,9,1,1,0.5,old,red,0.0\n2,2019-11-24,14,2,1,0.25,young,red,0\n"
    )
    log = open_log(str(path))
    assert log.context_ids == ("old/red", "young/red")
    assert log.item_ids == ("14", "9")
    assert log.impressions.contexts.tolist() == [1, 0, 1]
    assert log.impressions.rewards.tolist() == [0, 1, 1]
    assert log.impressions.propensities.tolist() == log.impressions.inclusions.tolist() == [0.25, 0.5, 0.25]


def test_the_real_open_bandit_sample(shared: Path) -> None:
    log = open_log(str(shared / "data" / "open_bandit" / "random" / "men" / "men.csv"))
    assert len(log.impressions.rewards) == 10_000
    assert len(log.item_ids) == 34
    assert log.impressions.propensities.unique().tolist() == pytest.approx([1 / 34])


def test_a_plain_log_keeps_its_ids_and_may_have_no_propensities(tmp_path: Path) -> None:
    log = open_log(str(plain(tmp_path / "log.csv")))
    assert log.item_ids == ("000", "001", "002", "003", "004")
    assert log.has_propensities
    pl.read_csv(tmp_path / "log.csv", infer_schema=False).drop("propensity").write_parquet(tmp_path / "log.parquet")
    bare = open_log(str(tmp_path / "log.parquet"))
    assert not bare.has_propensities
    assert torch.equal(bare.impressions.items, log.impressions.items)
    assert bare.fingerprint != log.fingerprint


def test_a_worlds_rows_are_found_by_the_logs_ids(tmp_path: Path) -> None:
    world = open_world("synthetic", None, 0, contexts=6, items=8)
    path = tmp_path / "log.csv"
    path.write_text("context_id,item_id,reward\n5,7,1\n2,0,1\n")
    log = open_log(str(path), world)
    assert (log.context_ids, log.item_ids) == (world.context_ids, world.item_ids)
    assert log.impressions.contexts.tolist() == [5, 2]
    assert log.impressions.items.tolist() == [7, 0]
    path.write_text("context_id,item_id,reward\n5,7,1\n6,0,1\n")
    with pytest.raises(UsageError, match=rf"from_log \({path}\): context_id 6 is not in the world"):
        open_log(str(path), world)


def test_what_is_held_out_is_decided_by_the_seed_and_must_have_earned_something(tmp_path: Path) -> None:
    log = open_log(str(plain(tmp_path / "log.csv", 400)))
    one, again, other = (hold_out(log, seed) for seed in (0, 0, 1))
    assert (len(one.learned.items), len(one.held_out.items)) == (360, 40)
    assert torch.equal(one.held_out.items, again.held_out.items)
    assert not torch.equal(one.held_out.items, other.held_out.items)
    table = pl.read_csv(tmp_path / "log.csv", infer_schema=False).with_columns(reward=pl.lit("0"))
    table.write_csv(tmp_path / "nothing.csv")
    with pytest.raises(UsageError, match="none of the 40 held-out impressions"):
        hold_out(open_log(str(tmp_path / "nothing.csv")), 0)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read: No such file"),
        ("context_id,item_id,clicks\nu,v,1\n", "has no column reward; a log needs context_id, item_id, reward"),
        ("context_id,item_id,reward,propensity\nu,v,1,0.5\nu,v,1,0\n", "row 2 has propensity 0; it must be above 0"),
        ("item_id,click,propensity_score\n1,1,0.5\n1,,0.5\n", "row 2 has reward None; it must be a finite number"),
        (b"PAR1 and nothing else", "cannot be read"),
        (b"SQLite format 3\0 and nothing else", "the feedback log cannot be read"),
    ],
)
def test_logs_that_cannot_be_read_are_one_line(
    content: str | bytes | None, says: str, tmp_path: Path, refused: Callable[[int], str]
) -> None:
    path = tmp_path / "log"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refused(command_line(["--from-log", str(path), "--estimator", "ce", "--out", str(tmp_path / "run")]))
    assert says in line
    assert not (tmp_path / "run").exists()
