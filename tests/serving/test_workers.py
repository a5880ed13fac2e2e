"""Several real processes on one port: killed, switched, counted and drained as one server."""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from serving import client
from serving.server_options import ServerOptions
from serving.workers import Supervisor
from tests.conftest import run_module, started
from tests.serving.live import Admin, is_running, load_on, publish, wait_until
from tests.serving.test_telemetry import scrape
from tests.serving.test_versions import flip


def children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


@pytest.fixture(scope="module")
def root(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workers") / "bundles"
    shutil.copytree(bundles, root)
    return root


@pytest.fixture(scope="module")
def live(root: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    options = ("--workers", "2", "--admin-port", "0", "--metrics-port", "0", "--poll-seconds", "0.1")
    with started(root, *options) as (process, facts):
        yield process.pid, facts
        process.terminate()
        assert process.wait(timeout=60) == 0
    assert not any(is_running(pid) for pid in facts["worker_pids"])


def test_a_killed_worker_fails_only_its_own_calls_and_comes_back(live: tuple[int, dict[str, Any]]) -> None:
    supervisor, facts = live
    assert len(set(facts["worker_pids"])) == 2
    before = children(supervisor)
    assert before >= set(facts["worker_pids"])
    victim = facts["worker_pids"][0]
    clients = 12
    with load_on(facts["address"], clients, waits=True) as load:
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(load.calls) > 40 * clients)
        wait_until(lambda: len(children(supervisor) - {victim}) == len(before))
        asked = len(load.calls)
        wait_until(lambda: len(load.calls) > asked + 20 * clients)
    failed = load.codes() - {"OK"}
    assert failed <= {"UNAVAILABLE"}
    assert load.count("UNAVAILABLE") <= clients, "at most what was in flight"
    assert {call.code for call in load.calls[asked + clients :]} == {"OK"}


def test_workers_switch_together_and_one_that_comes_back_does_so_too(
    live: tuple[int, dict[str, Any]], root: Path
) -> None:
    supervisor, facts = live
    admin = Admin(facts["admin_address"])
    with load_on(facts["address"], clients=6) as load:
        publish(root, 2)
        wait_until(lambda: admin.active() == 2)
        asked = len(load.calls)
        assert admin.roll_back().version == 1
        assert admin.list().follows_latest is False
        publish(root, 3, flip)
        with pytest.raises(grpc.RpcError, match="was changed"):
            admin.activate(3)
        assert admin.active() == 1
    assert load.codes() == {"OK"}
    assert {call.version for call in load.calls[asked:]} <= {1, 2}
    for victim in children(supervisor):
        os.kill(victim, signal.SIGKILL)
    wait_until(lambda: _answers(facts["address"]))
    with load_on(facts["address"], clients=12) as load:
        pass
    assert {call.version for call in load.calls if call.code == "OK"} == {1}, "no worker went back to the highest"


def _answers(address: str) -> bool:
    try:
        return bool(client.retrieve(address, "5", 3)[2])
    except client.CallError:
        return False


def test_metrics_are_of_all_workers(live: tuple[int, dict[str, Any]]) -> None:
    _, facts = live
    key = ("esr_requests_total", "OK", "esr.v1.RetrievalService/Retrieve")
    before = scrape(facts["metrics_address"])
    with load_on(facts["address"], clients=8) as load:
        pass
    after = scrape(facts["metrics_address"])
    assert after[key] - before.get(key, 0) == load.count("OK")
    wait_until(lambda: scrape(facts["metrics_address"])["esr_active_version",] == 1)  # 0 while one is coming back


def test_the_port_is_not_shared_with_another_server(live: tuple[int, dict[str, Any]], root: Path) -> None:
    _, facts = live
    port = facts["address"].rpartition(":")[2]
    for workers in ("1", "2"):
        done = run_module("serving", "serve", root, "--port", port, "--workers", workers, timeout=60)
        assert done.returncode == 2
        assert done.stderr == f"error: address ({facts['address']}) cannot be listened on: is the port in use?\n"


def test_workers_that_cannot_start_are_one_line(tmp_path: Path, bundles: Path) -> None:
    shutil.copytree(bundles, tmp_path / "bundles")
    flip(tmp_path / "bundles" / "1")
    done = run_module("serving", "serve", tmp_path / "bundles", "--port", "0", "--workers", "2")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: bundles ({tmp_path / 'bundles'}): items.faiss was changed")
    assert len(done.stderr.splitlines()) == 1


def test_nothing_outlives_a_supervisor_that_was_killed(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with started(bundles, "--workers", "2") as (process, facts):
        assert len(list(tmp_path.glob("esr-*"))) == 1
        assert client.retrieve(facts["address"], "5", 3)[2] == 1
        process.kill()
        wait_until(lambda: not any(is_running(pid) for pid in facts["worker_pids"]))
        wait_until(lambda: not list(tmp_path.glob("esr-*")))


def test_a_spawn_that_fails_is_the_error_that_is_told_and_leaks_nothing(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> list[int]:
        supervisor = Supervisor(ServerOptions(root=bundles, workers=2), tmp_path)
        descriptors = []
        for _ in range(4):
            with pytest.raises(FileNotFoundError, match="no-such-python"):
                await supervisor.start()
            await supervisor.stop()
            descriptors.append(len(os.listdir("/proc/self/fd")))
        return descriptors

    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-such-python"))
    descriptors = asyncio.run(run())
    assert descriptors == [descriptors[0]] * 4
