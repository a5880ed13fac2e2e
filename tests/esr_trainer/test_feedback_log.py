"""One contract over SQLite and a real PostgreSQL; then what each of the two can suffer."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esr_trainer import feedback_parquet, feedback_reader
from esr_trainer.command_line import UsageError
from esr_trainer.feedback_log import (
    Feedback,
    FeedbackLog,
    FeedbackLogUnavailableError,
    FeedbackLogUnusableError,
    FeedbackRefusedError,
    Outcome,
    Shown,
    check,
    read,
    summary,
)
from esr_trainer.feedback_parquet import SCHEMA, export
from esr_trainer.feedback_record import MAX_REQUEST_ID
from tests.conftest import ROOT
from tests.feedback_writer import BEGAN, feedback
from tests.postgres import PostgresServer

NEW, SAME, CONFLICT = Outcome.NEW, Outcome.SAME, Outcome.CONFLICT
SOON = 0.3
"""A timeout in seconds for what does not answer anyway."""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where no log is yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/feedback log?.db".replace("?", "%3F")
    postgres: PostgresServer = request.getfixturevalue("postgres")
    return postgres.new_database()


@contextmanager
def database(url: str) -> Iterator[sa.Connection]:
    """The log's database, beside the log."""
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def writer(url: str, *arguments: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.feedback_writer", url, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def shown(number: int, **changes: Any) -> Feedback:
    record = feedback(number)
    return record._replace(shown=record.shown._replace(**changes))


def large(number: int) -> Feedback:
    """A record of some kilobytes that no compression makes small."""
    return shown(number, context_id="".join(map(str, random.Random(number).choices(range(1 << 62), k=50))))


def unavailable(action: Callable[[], object]) -> str:
    with pytest.raises(FeedbackLogUnavailableError) as error:
        action()
    text = str(error.value)
    for internal in ("s3cret", "/", "esr_feedback", "INSERT", "\n"):
        assert internal not in text
    return text


# The contract


def test_what_was_recorded_is_read_in_the_order_of_time(url: str) -> None:
    with FeedbackLog.open(url) as log:
        assert log.record([feedback(number) for number in (3, 1, 4, 0)]) == [NEW] * 4
        assert log.record([]) == []
        assert log.record([feedback(2)]) == [NEW]
    assert list(read(url)) == [feedback(number) for number in range(5)]


def test_the_same_feedback_again_changes_nothing(url: str) -> None:
    with FeedbackLog.open(url) as log:
        log.record([feedback(0)])
        later = feedback(0)._replace(time=BEGAN + timedelta(days=1))
        assert log.record([later, feedback(1), feedback(1)]) == [SAME, NEW, SAME]
        assert log.record([feedback(1)]) == [SAME]
    assert list(read(url)) == [feedback(0), feedback(1)]


@pytest.mark.parametrize(
    "other",
    [
        feedback(0)._replace(rewards=(0.0, -2e-300)),
        feedback(0)._replace(slate=feedback(0).slate[::-1]),
        feedback(0)._replace(lsr_probabilities=(0.1, 0.5)),
        shown(0, context_id="another"),
        shown(0, log_probability=-1e-9),
    ],
)
def test_another_record_of_a_request_id_is_refused_on_its_own(url: str, other: Feedback) -> None:
    with FeedbackLog.open(url) as log:
        assert log.record([feedback(0), other]) == [NEW, CONFLICT]
        assert log.record([other, feedback(1), feedback(0)]) == [CONFLICT, NEW, SAME]
    assert list(read(url)) == [feedback(0), feedback(1)]


def test_nothing_of_a_batch_is_written_when_a_record_breaks_a_rule(url: str) -> None:
    with FeedbackLog.open(url) as log:
        with pytest.raises(FeedbackRefusedError):
            log.record([feedback(0), shown(1, context_id="nul\0")])
        assert log.record([feedback(2)]) == [NEW]
    assert list(read(url)) == [feedback(2)]


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
PROBABILITIES = st.floats(0, 1, exclude_min=True)


@st.composite
def records(draw: st.DrawFn) -> Feedback:
    candidates = draw(st.lists(TEXTS, min_size=1, max_size=6, unique=True))
    slate = draw(st.lists(st.sampled_from(candidates), min_size=1, unique=True))
    sampled = draw(st.booleans())
    each: dict[str, Any] = {"min_size": len(candidates), "max_size": len(candidates)}
    slots: dict[str, Any] = {"min_size": len(slate), "max_size": len(slate)}
    record = Shown(
        request_id=draw(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=128)),
        model_id=draw(TEXTS),
        model_version=draw(st.integers(1, (1 << 63) - 1)),
        mode="sampled" if sampled else "greedy",
        context_id=draw(st.just("") | TEXTS),
        candidates=tuple(candidates),
        inclusion_propensities=tuple(draw(st.lists(PROBABILITIES, **each))) if sampled else (),
        log_probability=draw(st.floats(max_value=0, allow_infinity=False)) if sampled else None,
        experts=tuple(draw(st.lists(st.integers(0, (1 << 31) - 1), **each))),
    )
    lsr = draw(st.just(()) | st.lists(PROBABILITIES, **slots).map(tuple))
    rewards = tuple(draw(st.lists(FINITE, **slots)))
    return Feedback(record, tuple(slate), lsr, rewards, draw(st.datetimes(timezones=st.just(UTC))))


def test_any_text_number_and_time_comes_back_exactly(url: str, tmp_path: Path) -> None:
    recorded: dict[str, Feedback] = {}

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(records(), max_size=8, unique_by=lambda record: record.shown.request_id))
    def record(batch: list[Feedback]) -> None:
        outcomes = log.record(batch)
        for one, outcome in zip(batch, outcomes, strict=True):
            assert (outcome is NEW) == (one.shown.request_id not in recorded)
            recorded.setdefault(one.shown.request_id, one)

    with FeedbackLog.open(url) as log:
        record()
    found = list(read(url))
    assert {one.shown.request_id: one for one in found} == recorded
    assert [one.time for one in found] == sorted(one.time for one in found)
    assert export(url, tmp_path / "log.parquet") == len(found)
    assert list(read(str(tmp_path / "log.parquet"))) == found


def test_processes_that_start_and_write_at_once_record_each_request_once(url: str) -> None:
    forwards = [writer(url, first, 120, 2, 3) for first in (0, 1)]
    backwards = [writer(url, first, -1, -2, 4) for first in (118, 119)]
    news: list[str] = []
    for process in (*forwards, *backwards):
        out, err = process.communicate()
        assert not err
        assert len(out.splitlines()) == 60
        assert not any("conflict" in line for line in out.splitlines())
        news += [line.split()[0] for line in out.splitlines() if line.endswith("new")]
    assert sorted(news, key=int) == [str(number) for number in range(120)]
    assert list(read(url)) == [feedback(number) for number in range(120)]


def test_threads_share_a_log(url: str) -> None:
    with FeedbackLog.open(url) as log, ThreadPoolExecutor(4) as threads:
        parts = [[feedback(number + offset) for offset in range(3)] for number in range(60)]
        outcomes = list(threads.map(log.record, parts))
    assert sum(part.count(NEW) for part in outcomes) == 62
    assert not any(CONFLICT in part for part in outcomes)
    assert list(read(url)) == [feedback(number) for number in range(62)]


def test_what_was_acknowledged_survives_a_killed_writer(url: str) -> None:
    process = writer(url, 0, 1_000_000, 1, 8)
    assert process.stdout is not None
    acknowledged = [process.stdout.readline() for _ in range(200)]
    process.kill()
    acknowledged += process.communicate()[0].splitlines()
    complete = [int(line.split()[0]) for line in acknowledged if line.split()[1:]]
    found = list(read(url))
    assert len(found) % 8 == 0, "whole batches"
    assert found[: len(complete)] == [feedback(number) for number in complete]
    with FeedbackLog.open(url) as log:
        assert log.record([feedback(0), feedback(2_000_000)]) == [SAME, NEW]
    if url.startswith("sqlite"):
        with database(url) as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"


def test_reading_pages_through_equal_times_and_starts_where_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback_reader, "PAGE", 4)
    batch = [feedback(number)._replace(time=BEGAN + timedelta(hours=number // 6)) for number in range(18)]
    with FeedbackLog.open(url) as log:
        log.record(batch)
        found = read(url)
        first = next(found)
        log.record([feedback(100)._replace(time=BEGAN + timedelta(days=1))])
        assert {first, *found} == set(batch), "a record that comes meanwhile is left out"
    assert set(read(url, BEGAN + timedelta(hours=1, microseconds=-1))) == {*batch[6:], *list(read(url))[18:]}
    assert len(list(read(url, BEGAN + timedelta(hours=1, microseconds=1)))) == 7
    with pytest.raises(UsageError, match="must have a time zone"):
        list(read(url, datetime(2026, 1, 1)))


def test_a_log_of_another_schema_is_left_alone(url: str) -> None:
    FeedbackLog.open(url).close()
    with database(url) as connection:
        connection.execute(sa.text("UPDATE esr_feedback_schema SET version = 7"))
    for use in (lambda: FeedbackLog.open(url), lambda: FeedbackLog(url).record([feedback(0)]), lambda: list(read(url))):
        with pytest.raises(FeedbackLogUnusableError, match=r"schema version \(7\) must be 1"):
            use()


def test_a_database_without_a_log_is_not_read_and_not_changed(url: str, tmp_path: Path) -> None:
    with database(url) as connection:
        connection.execute(sa.text("CREATE TABLE other (id INTEGER)"))
    for use in (lambda: list(read(url)), lambda: summary(url), lambda: export(url, tmp_path / "log.parquet")):
        with pytest.raises(FeedbackLogUnusableError, match="holds no feedback log"):
            use()
    with database(url) as connection:
        assert sa.inspect(connection).get_table_names() == ["other"]
    assert not list(tmp_path.glob("*parquet*"))


@pytest.mark.parametrize(
    "change", ["rewards = '[1, \"x\"]'", "rewards = '[1'", "slate = '[\"stranger\"]'", "candidates = '{}'"]
)
def test_a_damaged_record_is_not_read_and_not_exported(url: str, change: str, tmp_path: Path) -> None:
    with FeedbackLog.open(url) as log:
        log.record([feedback(0), feedback(1)])
    with database(url) as connection:
        connection.exec_driver_sql(f"UPDATE esr_feedback SET {change} WHERE request_id = 'request-1'")
    with pytest.raises(FeedbackLogUnusableError, match="a record does not read"):
        list(read(url))
    with pytest.raises(FeedbackLogUnusableError, match="a record does not read"):
        export(url, tmp_path / "log.parquet")
    assert not list(tmp_path.glob("*parquet*"))


def test_a_log_that_lost_its_tables_makes_them_anew(url: str) -> None:
    with FeedbackLog.open(url) as log:
        log.record([feedback(0)])
        with database(url) as connection:
            connection.exec_driver_sql("DROP TABLE esr_feedback")
        unavailable(lambda: log.record([feedback(1)]))
        assert log.record([feedback(1)]) == [NEW]


# The rules


@pytest.mark.parametrize(
    ("record", "field", "rule"),
    [
        (shown(0, request_id=""), "request_id", "('') must have 1 to 128 characters"),
        (shown(0, request_id="x" * 129), "request_id", f"('{'x' * 100}') must have 1 to 128 characters"),
        (shown(0, request_id="a\0b"), "request_id", "('a\\x00b') must be UTF-8 text without NUL"),
        (shown(0, model_id=""), "model_id", "must not be empty"),
        (shown(0, model_version=0), "model_version", "(0) must be from 1 to 2^63 - 1"),
        (shown(0, model_version=1 << 63), "model_version", "(9223372036854775808) must be from 1 to 2^63 - 1"),
        (shown(0, context_id="\ud800"), "context_id", "('\\ud800') must be UTF-8 text without NUL"),
        (shown(0, candidates=()), "candidates", "must not be empty"),
        (shown(0, candidates=("a", "b", "a", "c")), "candidates", "(a) must be distinct"),
        (shown(0, candidates=("a", "", "b", "c")), "candidates", "must not hold an empty id"),
        (shown(0, candidates=("a", "b\0", "c", "d")), "candidates", "('b\\x00') must be UTF-8 text without NUL"),
        (shown(0, experts=(0, 1)), "experts", "(length 2) must have one value per candidate, 4"),
        (shown(0, experts=(0, 1, 0, -1)), "experts[3]", "(-1) must be from 0 to 2^31 - 1"),
        (shown(0, mode="random"), "mode", "('random') must be one of greedy, sampled"),
        (
            shown(0, inclusion_propensities=()),
            "inclusion_propensities",
            "(length 0) must have one value per candidate, 4",
        ),
        (shown(0, inclusion_propensities=(1, 0, 1, 1)), "inclusion_propensities[1]", "(0) must be in (0, 1]"),
        (
            shown(0, inclusion_propensities=(1, 0.5, float("nan"), 1)),
            "inclusion_propensities[2]",
            "(nan) must be in (0, 1]",
        ),
        (shown(0, log_probability=None), "log_probability", "(None) must be finite and at most 0"),
        (shown(0, log_probability=1e-9), "log_probability", "(1e-09) must be finite and at most 0"),
        (shown(0, log_probability=float("-inf")), "log_probability", "(-inf) must be finite and at most 0"),
        (shown(0, log_probability=float("nan")), "log_probability", "(nan) must be finite and at most 0"),
        (shown(1, log_probability=-1.0), "log_probability", "must be left out when mode is greedy"),
        (shown(1, inclusion_propensities=(1,) * 4), "inclusion_propensities", "must be left out when mode is greedy"),
        (feedback(0)._replace(slate=()), "slate", "must not be empty"),
        (feedback(0)._replace(slate=("item-0", "item-0")), "slate", "(item-0) must be distinct"),
        (feedback(0)._replace(slate=("item-0", "item-9")), "slate", "(item-9) must be among the candidates"),
        (
            feedback(1)._replace(lsr_probabilities=(0.1,)),
            "lsr_probabilities",
            "(length 1) must have one value per slot of the slate, 2",
        ),
        (feedback(1)._replace(lsr_probabilities=(0.1, 1.5)), "lsr_probabilities[1]", "(1.5) must be in (0, 1]"),
        (feedback(0)._replace(rewards=(1.0,)), "rewards", "(length 1) must have one value per slot of the slate, 2"),
        (feedback(0)._replace(rewards=(float("inf"), 1.0)), "rewards[0]", "(inf) must be a finite number"),
        (
            feedback(0)._replace(time=datetime(2026, 1, 31)),
            "time",
            "(2026-01-31 00:00:00) must be in UTC",
        ),
    ],
)
def test_a_broken_rule_names_the_field_and_quotes_the_value(record: Feedback, field: str, rule: str) -> None:
    with pytest.raises(FeedbackRefusedError) as error:
        check(record)
    assert (error.value.field, error.value.rule) == (field, rule)
    str(error.value).encode()


def test_the_longest_request_id_is_recorded(url: str) -> None:
    record = shown(0, request_id="\U0001f600" * MAX_REQUEST_ID)
    with FeedbackLog.open(url) as log:
        assert log.record([record]) == [NEW]
    assert list(read(url)) == [record]


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("mysql://user:s3cret@host/db", "mysql is not one of sqlite, postgresql"),
        ("postgresql+asyncpg://user:s3cret@host/db", "must be postgresql or postgresql+psycopg"),
        ("://s3cret", "the URL cannot be parsed"),
        ("postgresql://host:s3cret/db", "the URL cannot be parsed"),
        ("sqlite://", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
        ("sqlite:///log.db?mode=ro", "must name a file"),
        ("", "must name a file"),
    ],
)
def test_a_url_of_no_log_is_refused_without_being_quoted(url: str, rule: str) -> None:
    with pytest.raises(FeedbackLogUnusableError, match=rule.replace("+", r"\+")) as error:
        FeedbackLog(url)
    assert "s3cret" not in str(error.value)


def test_the_log_needs_neither_torch_nor_serving_nor_polars() -> None:
    script = "import sys, esr_trainer.feedback_log; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {"torch", "serving", "polars", "psycopg"} & set(loaded.split())


# Parquet


def test_an_export_replaces_nothing_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    log, to = tmp_path / "feedback.db", tmp_path / "log.parquet"
    with FeedbackLog.open(f"sqlite:///{log}") as opened:
        opened.record([feedback(number) for number in range(10)])
    assert export(str(log), to, BEGAN + timedelta(microseconds=4)) == 6
    before = to.read_bytes()
    for target in (to, log):
        with pytest.raises(FileExistsError):
            export(str(log), target)
    assert to.read_bytes() == before
    assert pl.read_parquet_schema(to) == SCHEMA
    assert {path.name for path in tmp_path.iterdir()} <= {"feedback.db", "feedback.db-wal", "feedback.db-shm", to.name}


def test_a_parquet_file_counts_as_the_database_that_it_came_from(url: str, tmp_path: Path) -> None:
    with FeedbackLog.open(url) as log:
        log.record([feedback(number) for number in range(20)])
    export(url, tmp_path / "log.parquet")
    counts = summary(url)
    assert [(count.model_version, count.records, count.sampled) for count in counts] == [
        (1, 7, 4),
        (2, 7, 3),
        (3, 6, 3),
    ]
    assert (counts[0].first, counts[0].last) == (BEGAN, BEGAN + timedelta(microseconds=18))
    assert summary(str(tmp_path / "log.parquet")) == counts


def test_the_export_is_opened_before_the_log_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a thread of the writer creates it after a log that does not read had it removed."""
    at_reading: list[int] = []

    def pages(*_: object) -> Iterator[list[Feedback]]:
        at_reading.append(len(list(tmp_path.iterdir())))
        raise FeedbackLogUnusableError("does not read")

    monkeypatch.setattr(feedback_parquet, "pages", pages)
    for _ in range(20):
        with pytest.raises(FeedbackLogUnusableError):
            export("any", tmp_path / "log.parquet")
    assert at_reading == [1] * 20
    assert not list(tmp_path.iterdir())


def test_a_table_that_is_no_export_is_refused(tmp_path: Path) -> None:
    pl.DataFrame({"request_id": [1]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(UsageError, match=r"column request_id \(Int64\) must be String"):
        list(read(str(tmp_path / "other.parquet")))
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "other.parquet").read_bytes()[:50])
    with pytest.raises(UsageError, match="cannot be read"):
        list(read(str(tmp_path / "cut.parquet")))
    with pytest.raises(UsageError, match="No such file"):
        list(read(str(tmp_path / "nothing.db")))


# SQLite


@contextmanager
def disk_at(path: Path) -> Iterator[Callable[[str], Path]]:
    """What mounts a disk of its own there, or mounts it again with other options."""
    path.mkdir()

    def mount(options: str) -> Path:
        again = "remount," if path.is_mount() else ""
        command = ["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this machine cannot mount a disk: {done.stderr.strip()}")
        return path

    try:
        yield mount
    finally:
        if path.is_mount():
            subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """See `disk_at`."""
    with disk_at(tmp_path / "disk") as mount:
        yield mount


def fill(log: FeedbackLog) -> tuple[int, str]:
    """Record until it fails: how many were acknowledged, and what was said."""
    recorded = 0

    def record() -> None:
        nonlocal recorded
        while True:
            assert set(log.record([large(number) for number in range(recorded, recorded + 10)])) == {NEW}
            recorded += 10

    said = unavailable(record)
    assert said == unavailable(record), "the same again"
    assert recorded > 0
    return recorded, said


def test_a_full_disk_is_said_and_survived(disk: Callable[[str], Path]) -> None:
    url = f"sqlite:///{disk('size=256k')}/feedback.db"
    with FeedbackLog.open(url) as log:
        recorded, said = fill(log)
        assert said == "the feedback log cannot be written: the disk is full"
        disk("size=8m")
        assert log.record([large(recorded)]) == [NEW]
    assert list(read(url)) == [large(number) for number in range(recorded + 1)]


def test_a_read_only_directory_is_said_and_survived(disk: Callable[[str], Path]) -> None:
    url = f"sqlite:///{disk('ro')}/feedback.db"
    with FeedbackLog(url) as log:
        said = "its file cannot be opened or made; the directory may be missing or read-only"
        assert said in unavailable(lambda: log.record([feedback(0)]))
        assert said in unavailable(lambda: FeedbackLog.open(url))
        disk("rw")
        assert log.record([feedback(0)]) == [NEW]
    disk("ro")
    with FeedbackLog(url) as log:
        unavailable(lambda: log.record([feedback(1)]))
        disk("rw")
        assert log.record([feedback(0), feedback(1)]) == [SAME, NEW]


def test_a_file_that_another_holds_is_waited_for_until_the_timeout(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/feedback.db"
    with FeedbackLog.open(url, timeout=SOON) as log:
        with closing(sqlite3.connect(tmp_path / "feedback.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            said = unavailable(lambda: log.record([feedback(0)]))
            assert said == "the feedback log cannot be written: other processes have held it for 0.3 s"
            assert list(read(url)) == [], "readers do not wait"
        assert log.record([feedback(0)]) == [NEW]


def test_a_file_that_another_is_making_is_waited_for(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "feedback.db", isolation_level=None, check_same_thread=False)) as other:
        other.execute("CREATE TABLE other (id)")
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.2, other.execute, ["COMMIT"])
        release.start()
        with FeedbackLog.open(f"{tmp_path}/feedback.db", timeout=60) as log:
            assert log.record([feedback(0)]) == [NEW]
        release.join()


def test_records_go_where_the_path_is_after_the_file_was_moved_away(tmp_path: Path) -> None:
    with FeedbackLog.open(f"{tmp_path}/feedback.db") as log:
        log.record([feedback(0)])
        for path in list(tmp_path.iterdir()):
            path.rename(path.with_name(path.name.replace("feedback", "old")))
        assert log.record([feedback(1)]) == [NEW]
    assert list(read(f"{tmp_path}/old.db")) == [feedback(0)]
    assert list(read(f"{tmp_path}/feedback.db")) == [feedback(1)]


def test_a_file_of_something_else_is_said(tmp_path: Path) -> None:
    (tmp_path / "feedback.db").write_text("not a database, but long enough to look at" * 100)
    said = unavailable(lambda: FeedbackLog.open(f"{tmp_path}/feedback.db"))
    assert said == "the feedback log cannot be written: its file is not an SQLite database"


def test_every_commit_waits_for_the_disk(tmp_path: Path) -> None:
    with FeedbackLog.open(f"{tmp_path}/feedback.db") as log, log._transaction() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"


# PostgreSQL


def backends(postgres: PostgresServer, url: str) -> list[int]:
    name = sa.make_url(url).database
    with postgres.session() as connection:
        found = connection.execute(sa.text("SELECT pid FROM pg_stat_activity WHERE datname = :name"), {"name": name})
        return list(found.scalars())


def test_a_lock_that_another_holds_is_waited_for_until_the_timeout(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    with FeedbackLog.open(url, timeout=SOON) as log:
        log.record([feedback(0)])
        with database(url) as other:
            other.exec_driver_sql("LOCK TABLE esr_feedback IN ACCESS EXCLUSIVE MODE")
            said = unavailable(lambda: log.record([feedback(1)]))
            assert said == "the feedback log cannot be written: PostgreSQL did not finish within 0.3 s"
            said = unavailable(lambda: list(read(url, timeout=SOON)))
            assert said == "the feedback log cannot be read: PostgreSQL did not finish within 0.3 s"
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            with postgres.session() as connection:
                while connection.exec_driver_sql(waiting).scalar_one():  # the server gives up too, by itself
                    time.sleep(0.01)
        assert log.record([feedback(0), feedback(1)]) == [SAME, NEW]


def test_a_server_that_stands_still_is_given_up(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    with FeedbackLog.open(url, timeout=SOON) as log:
        log.record([feedback(0)])
        (backend,) = backends(postgres, url)
        postmaster = int((postgres.directory / "data" / "postmaster.pid").read_text().split()[0])
        for process in (postmaster, backend):
            os.kill(process, signal.SIGSTOP)
        try:
            for _ in range(2):  # on the connection that stands still, then on a new one
                said = unavailable(lambda: log.record([feedback(1)]))
                assert said == "the feedback log cannot be written: PostgreSQL did not finish within 0.3 s"
        finally:
            for process in (postmaster, backend):
                os.kill(process, signal.SIGCONT)
    with FeedbackLog(url) as log:
        assert log.record([feedback(0), feedback(1)]) == [SAME, NEW]


def test_a_log_outlives_the_server(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    with FeedbackLog.open(url) as log:
        log.record([feedback(0)])
        postgres.stop()
        try:
            said = unavailable(lambda: log.record([feedback(1)]))
            assert "cannot be reached" in said
            unavailable(lambda: FeedbackLog.open(url))
            unavailable(lambda: list(read(url)))
        finally:
            postgres.start()
        assert log.record([feedback(0), feedback(1)]) == [SAME, NEW]
        postgres.stop()
        postgres.start()
        assert log.record([feedback(2)]) == [NEW], "a restart between two calls is not noticed"


def test_a_full_disk_of_the_server_is_said_and_survived(postgres: PostgresServer) -> None:
    with disk_at(postgres.directory / "disk") as mount, postgres.session() as connection:
        path = mount("size=11m")
        if postgres.user:
            shutil.chown(path, postgres.user)
        connection.exec_driver_sql(f"CREATE TABLESPACE small LOCATION '{path}'")
        url = postgres.new_database("TABLESPACE small")
        with FeedbackLog.open(url) as log:
            recorded, said = fill(log)
            assert said == "the feedback log cannot be written: PostgreSQL's disk is full"
            mount("size=32m")
            assert log.record([large(recorded)]) == [NEW]
        assert list(read(url)) == [large(number) for number in range(recorded + 1)]
        connection.exec_driver_sql(f"DROP DATABASE {sa.make_url(url).database} WITH (FORCE)")
        connection.exec_driver_sql("DROP TABLESPACE small")


def test_a_database_of_another_encoding_is_refused(postgres: PostgresServer) -> None:
    url = postgres.new_database("ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(FeedbackLogUnusableError, match=r"encoding \(LATIN1\) must be UTF8"):
        FeedbackLog.open(url)


def test_a_commit_waits_for_the_disk_whatever_the_database_says(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    with postgres.session() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {sa.make_url(url).database} SET synchronous_commit = off")
    with FeedbackLog.open(url) as log, log._transaction() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "on"
