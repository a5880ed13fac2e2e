"""Workers end with whoever started them, however that ends; real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

LONG = ("presets", "--budget", "paper", "--seeds", "1", "--workers", "1")


def workers_of(process: int) -> set[int]:
    """The workers that a process started; multiprocessing's own tracker is none."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return {int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()}


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], object], seconds: float = 60) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_a_worker_ends_with_the_command_that_started_it(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "offline_eval", "reproduce", *LONG, "--results", str(tmp_path), "--shared", "none"]
    workers: set[int] = set()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert wait_until(lambda: process.poll() is not None or workers_of(process.pid)), "a worker starts"
        workers = workers_of(process.pid)
        assert workers, process.communicate()
        busy = next(iter(workers))
        assert wait_until(lambda: sum(map(int, Path(f"/proc/{busy}/stat").read_text().split()[13:15])) > 200), "works"
        os.kill(process.pid, number)
        assert wait_until(lambda: not any(map(is_alive, workers)), 20), "no worker is left"
        _, err = process.communicate(timeout=30)
    finally:
        for left in workers:
            if is_alive(left):
                os.kill(left, signal.SIGKILL)
        process.kill()
        process.communicate()
    assert "Traceback" not in err
    if number != signal.SIGKILL:
        assert process.returncode == 0
        assert "stopped: 0 of 5 runs are there; the same command goes on" in err
