"""The end of a real server: readiness first, then whatever was accepted, then exit 0."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.wire import open_inference_pb2, open_inference_pb2_grpc
from tests.conftest import ROOT, started
from tests.serving.live import REQUEST, load_on, own_channel, retrieval

Status = health_pb2.HealthCheckResponse


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_under_load_loses_and_cancels_nothing_that_was_accepted(
    workers: int, bundles: Path, tmp_path: Path
) -> None:
    log = tmp_path / "access.log"
    with (
        started(bundles, "--access-log", str(log), "--workers", str(workers)) as (process, facts),
        load_on(facts["address"], clients=16) as load,
    ):
        process.terminate()
        assert process.wait(timeout=30) == 0
    if workers == 1:  # with more, clients may reach one that is about to stop
        assert load.codes() == {"OK", "UNAVAILABLE"}, "what was not accepted may be asked of another server"
    accepted = Counter(json.loads(line)["code"] for line in log.read_text().splitlines())
    assert accepted.keys() <= {"OK", "UNAVAILABLE"}
    assert accepted["OK"] == load.count("OK")


def test_readiness_flips_first_and_calls_are_taken_until_the_delay_is_over(bundles: Path) -> None:
    with started(bundles, "--drain-delay", "1.5") as (process, facts), own_channel(facts["address"]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        ready, alive = (
            stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=60)
            for name in ("esr.v1.RetrievalService", "liveness")
        )
        assert next(ready).status == Status.SERVING
        assert next(alive).status == Status.SERVING
        process.terminate()
        assert next(ready).status == Status.NOT_SERVING
        assert process.poll() is None
        newcomer = retrieval(facts["address"])
        assert len(newcomer.Retrieve(REQUEST, timeout=10).item_ids) == 10
        inference = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert not inference.ServerReady(open_inference_pb2.ServerReadyRequest(), timeout=10).ready
        assert stub.Check(health_pb2.HealthCheckRequest(service="liveness"), timeout=10).status == Status.SERVING
        assert [answer.status for answer in ready] == [], "a watch ends when the server does, and holds it no longer"
        assert [answer.status for answer in alive] == [], "alive to the end"
        assert process.wait(timeout=30) == 0


def test_one_watcher_that_leaves_does_not_deafen_the_others(bundles: Path) -> None:
    with started(bundles) as (process, facts), own_channel(facts["address"]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        first, second = (stub.Watch(health_pb2.HealthCheckRequest(), timeout=60) for _ in range(2))
        assert next(first).status == next(second).status == Status.SERVING
        first.cancel()
        stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
        process.terminate()
        assert next(second).status == Status.NOT_SERVING
        unknown = stub.Check.future(health_pb2.HealthCheckRequest(service="other"), timeout=10)
        assert unknown.code() in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE}
    with pytest.raises(grpc.RpcError):
        retrieval(facts["address"]).Retrieve(REQUEST, timeout=5)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_that_is_told_to_end_before_it_serves_does_so_at_once_and_silently(
    workers: str, bundles: Path
) -> None:
    for seconds in (0.1, 0.7):
        command = [sys.executable, "-m", "serving", "serve", str(bundles), "--port", "0", "--workers", workers]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        time.sleep(seconds)
        process.terminate()
        output, errors = process.communicate(timeout=30)
        assert process.returncode in {-signal.SIGTERM, 0}, "by the signal while it starts, 0 from when it listens"
        assert "Traceback" not in output + errors
