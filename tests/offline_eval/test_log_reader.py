"""Logs of every kind, as rounds."""

import gzip
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from esr_trainer.command_line import UsageError
from esr_trainer.feedback_parquet import export
from offline_eval.logs.log_reader import kind_of, read_rounds
from offline_eval.logs.logged_rounds import LoggedRounds
from tests.feedback_writer import feedback
from tests.offline_eval.served_logs import write

PLAIN = "context_id,item_id,reward,propensity\nu1,a,0.5,0.25\nu2,b,-1,1\n"
BANDIT = ",timestamp,item_id,position,click,propensity_score,user_feature_0\n0,t,14,3,1,0.5,x\n1,t,7,1,0,0.125,y\n"


def only(log: object, **options: str) -> LoggedRounds:
    (page,) = read_rounds(str(log), **options)
    return page


def test_a_served_round_keeps_its_propensities(tmp_path: Path) -> None:
    log = write(
        tmp_path / "f.db", [feedback(0)._replace(shown=feedback(0).shown._replace(context_id="u")), feedback(6)]
    )
    page = only(log)
    assert kind_of(log) == "feedback"
    assert page.contexts.to_list() == ["u", "user-6"]
    assert page.slate.to_list() == ["item-1", "item-0", "item-7", "item-6"]
    assert page.rewards == pytest.approx(np.array([[0, -1e-300], [6 / 7, -1e-300]]))
    assert page.inclusion == pytest.approx(np.array([[1, 1 / 2, 1 / 3, 1 / 4]] * 2))
    assert page.log_inclusion == pytest.approx(np.log([[1 / 2, 1], [1 / 2, 1]]))
    assert page.log_set_probability == pytest.approx([0, -2])
    assert page.shown.all()


def test_rounds_of_other_sizes_are_padded(tmp_path: Path) -> None:
    short = feedback(2, num_candidates=3)
    page = only(
        write(tmp_path / "f.db", [short._replace(slate=("item-4",), rewards=(1.0,), lsr_probabilities=()), feedback(4)])
    )
    assert page.shown.tolist() == [[True, False], [True, True]]
    assert page.rewards[0].tolist() == [1, 0]
    assert page.slate.to_list() == ["item-4", None, "item-5", "item-4"]
    assert page.candidates is not None
    assert page.candidates.to_list()[:4] == ["item-2", "item-3", "item-4", None]
    assert page.inclusion is not None
    assert math.isnan(page.inclusion[0, 3])


def test_parquet_reads_as_the_database(tmp_path: Path) -> None:
    log = write(tmp_path / "f.db", [feedback(number) for number in (2, 4, 6)])
    export(log, tmp_path / "f.parquet")
    database, parquet = only(log), only(tmp_path / "f.parquet")
    assert parquet.contexts.equals(database.contexts)
    assert np.array_equal(parquet.log_inclusion, database.log_inclusion)


def test_greedy_rounds_are_refused_by_their_number_or_left_out(tmp_path: Path) -> None:
    log = write(tmp_path / "f.db", [feedback(number) for number in (1, 2, 3)])
    with pytest.raises(UsageError, match="2 of 3 rounds are greedy, which have no support"):
        list(read_rounds(log))
    assert only(log, greedy="leave-out").contexts.to_list() == ["user-2"]
    greedy = write(tmp_path / "greedy.db", [feedback(1)])
    with pytest.raises(UsageError, match="1 of 1 rounds are greedy"):
        list(read_rounds(greedy, "leave-out"))


def test_rounds_without_a_context_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1 of 2 rounds name no context_id"):
        list(read_rounds(write(tmp_path / "f.db", [feedback(0), feedback(2)])))


@pytest.mark.parametrize("packed", ["plain", "gzip"])
def test_open_bandit_has_the_position_as_its_context(tmp_path: Path, packed: str) -> None:
    path = tmp_path / "men.csv"
    path.write_bytes(gzip.compress(BANDIT.encode()) if packed == "gzip" else BANDIT.encode())
    page = only(path)
    assert kind_of(str(path)) == "open-bandit"
    assert page.contexts.to_list() == ["3", "1"]
    assert page.slate.to_list() == ["14", "7"]
    assert page.rewards.tolist() == [[1], [0]]
    assert page.log_propensities == pytest.approx(np.log([[0.5], [0.125]]))


def test_a_plain_log_is_read_from_csv_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(PLAIN)
    pl.read_csv(PLAIN.encode()).write_parquet(tmp_path / "log.parquet")
    for name in ("log.csv", "log.parquet"):
        page = only(tmp_path / name)
        assert page.contexts.to_list() == ["u1", "u2"]
        assert page.rewards.tolist() == [[0.5], [-1]]
        assert page.log_propensities == pytest.approx(np.log([[0.25], [1]]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (PLAIN.replace("0.25", "0"), "row 1 has propensity 0.0; it must be above 0 and at most 1"),
        (PLAIN.replace("-1,1", "nan,1"), "row 2 has reward NaN; it must be a finite number"),
        (PLAIN.replace("u2", ""), "row 2 has context_id None; it must be there"),
        (PLAIN.splitlines()[0] + "\n", "holds no rounds"),
        ("context_id,item_id,reward\nu,a,1\n", "is no feedback log, and no table with the columns"),
        ("", "is no feedback log"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "log.csv").write_text(content)
    with pytest.raises(UsageError) as error:
        list(read_rounds(str(tmp_path / "log.csv")))
    assert said.lower() in str(error.value).lower()


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        kind_of(str(tmp_path / "none"))
