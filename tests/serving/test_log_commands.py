from collections.abc import Callable
from pathlib import Path

import pytest

from esr_trainer.command_line import main
from esr_trainer.feedback_log import FeedbackLog, read
from serving.__main__ import Serving
from tests.conftest import last_json, run_module
from tests.feedback_writer import feedback
from tests.postgres import PostgresServer


def test_a_log_in_postgresql_is_exported_and_shown(postgres: PostgresServer, tmp_path: Path) -> None:
    url, to = postgres.new_database(), tmp_path / "log.parquet"
    with FeedbackLog.open(url) as log:
        log.record([feedback(number) for number in range(20)])

    exported = run_module("serving", "log", "export", url, "--to", to, "--json")
    assert exported.returncode == 0, exported.stderr
    assert last_json(exported.stdout) == {"records": 20, "to": str(to)}
    assert list(read(str(to))) == list(read(url))

    shown = [run_module("serving", "log", "show", source, "--json") for source in (url, to)]
    assert shown[0].stdout == shown[1].stdout
    assert "20 records, from 2026-01-31 12:00:00 to 2026-01-31 12:00:00 UTC" in shown[0].stdout
    result = last_json(shown[0].stdout)
    assert result["records"] == 20
    assert result["first"] == "2026-01-31T12:00:00+00:00"
    assert result["versions"][1] == {
        "model_id": "ca-poisson-0123abcd",
        "model_version": 2,
        "records": 7,
        "sampled": 3,
        "first": "2026-01-31T12:00:00.000001+00:00",
        "last": "2026-01-31T12:00:00.000019+00:00",
    }


def test_an_empty_log_is_shown_and_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, to = str(tmp_path / "feedback.db"), str(tmp_path / "log.parquet")
    FeedbackLog.open(log).close()
    assert main(Serving, "serving", ["log", "export", log, "--to", to, "--since", "2026-01-31T00:00:00Z"]) == 0
    for source in (log, to):
        assert main(Serving, "serving", ["log", "show", source, "--json"]) == 0
        assert last_json(capsys.readouterr().out) == {"records": 0, "first": None, "last": None, "versions": []}
    assert list(read(to)) == []


def test_bad_logs_are_one_line(tmp_path: Path, refused: Callable[[int], str]) -> None:
    def run(*arguments: object) -> str:
        return refused(main(Serving, "serving", ["log", *map(str, arguments)]))

    log, other = tmp_path / "feedback.db", tmp_path / "other"
    FeedbackLog.open(str(log)).close()
    other.write_text("text")
    to = tmp_path / "new.parquet"
    assert "No such file" in run("show", tmp_path / "nothing")
    assert "not an SQLite database" in run("show", other)
    assert "not an SQLite database" in run("export", other, "--to", to)
    assert f"{log}: is already there" in run("export", log, "--to", log)
    nowhere = tmp_path / "no" / "directory.parquet"
    assert f"{nowhere}: No such file or directory" in run("export", log, "--to", nowhere)
    assert "since (2026-01-31T00:00:00)" in run("export", log, "--to", to, "--since", "2026-01-31T00:00:00")
    assert "s3cret" not in run("show", "postgresql://user:s3cret@127.0.0.1:1/log")
    assert not to.exists()
