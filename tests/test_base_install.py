"""The base install, in a fresh environment: it has no torch, and serves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, last_json

pytestmark = pytest.mark.slow


def test_the_base_install_serves_without_torch(bundles: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", ROOT], check=True)
    env = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [python, "-m", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env)

    assert "torch" not in run("pip", "list").stdout
    refused = run("serving", "export", "nothing")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: export needs the training packages")

    log, to = tmp_path / "feedback.db", tmp_path / "log.parquet"
    opened = f"from esr_trainer.feedback_log import FeedbackLog; FeedbackLog.open({str(log)!r})"
    subprocess.run([python, "-c", opened], check=True, cwd=tmp_path, env=env)
    exported = run("serving", "log", "export", log, "--to", to, "--json")
    assert exported.returncode == 0, exported.stderr
    assert last_json(exported.stdout)["records"] == 0
    in_postgresql = run("serving", "log", "show", "postgresql://127.0.0.1/log")
    assert in_postgresql.stderr == "error: feedback log: PostgreSQL needs psycopg: install '.[postgres]'\n"

    command = [python, "-m", "serving", "serve", bundles, "--port", "0", "--json"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=env)
    try:
        assert server.stdout is not None
        address = last_json(server.stdout.readline())["address"]
        answer = run("serving", "retrieve", "--context-id", "5", "-k", "4", "--address", address, "--json")
        assert answer.returncode == 0, answer.stderr
        assert len(last_json(answer.stdout)["item_ids"]) == 4
    finally:
        server.kill()
        server.communicate()
