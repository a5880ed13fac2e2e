"""What goes wrong around a real server under load: too many callers, callers that vanish, workers that are killed."""

import asyncio
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from esr_trainer.feedback_log import read
from serving.wire import retrieval_pb2 as wire
from serving.wire import retrieval_pb2_grpc
from tests.conftest import started
from tests.esr_trainer.test_feedback_log import disk_at
from tests.serving.live import own_channel, retrieval, wait_until
from tests.serving.test_feedback import Reporter, drawn
from tests.serving.test_service import metrics_of

DRAW = wire.RetrieveRequest(context_id="5", num_candidates=500, sampling=wire.Sampling(seed=1))


def test_callers_beyond_the_limit_are_told_when_to_come_back(bundles: Path, tmp_path: Path) -> None:
    calls: Counter[str] = Counter()

    async def caller(address: str, number: int) -> None:
        async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub: Any = retrieval_pb2_grpc.RetrievalServiceStub(channel)
            for _ in range(20):
                try:
                    answer = await stub.Retrieve(DRAW, timeout=60)
                    assert len(answer.item_ids) == 500
                    calls["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    calls[error.code().name] += 1
                    status = rpc_status.from_call(error)
                    assert status is not None
                    assert status.details[0].Is(error_details_pb2.RetryInfo.DESCRIPTOR)

    async def crowd(address: str) -> None:
        await asyncio.gather(*(caller(address, number) for number in range(64)))

    log = tmp_path / "access.jsonl"
    options = ("--max-in-flight", "4", "--access-log", str(log), "--metrics-port", "0")
    with started(bundles, *options) as (process, facts):
        asyncio.run(crowd(facts["address"]))
        bucket = 'esr_stage_seconds_{}{{{}stage="rejected"}}'
        rejected = metrics_of(facts["metrics_address"], bucket.format("count", ""))
        in_time = metrics_of(facts["metrics_address"], bucket.format("bucket", 'le="0.001",'))
        print(f"said no within 1 ms: {in_time / rejected:.2%}")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert set(calls) == {"OK", "RESOURCE_EXHAUSTED"}
    assert calls.total() == 64 * 20
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert Counter(line["code"] for line in lines) == calls
    assert rejected == calls["RESOURCE_EXHAUSTED"]
    for code in calls:
        seconds = sorted(line["seconds"] for line in lines if line["code"] == code)
        print(f"{code}: {len(seconds)} calls, p99 in the handler {seconds[int(0.99 * len(seconds))] * 1e3:.2f} ms")


def test_callers_that_vanish_leave_nothing_behind(bundles: Path) -> None:
    batch = wire.BatchRetrieveRequest(requests=[DRAW] * 200)
    with started(bundles, "--metrics-port", "0") as (_, facts):
        for _ in range(20):
            channel = own_channel(facts["address"])
            calls = [retrieval_pb2_grpc.RetrievalServiceStub(channel).BatchRetrieve.future(batch) for _ in range(3)]
            grpc.channel_ready_future(channel).result(10)
            channel.close()
            assert all(call.code() is not grpc.StatusCode.OK for call in calls)
        wait_until(lambda: metrics_of(facts["metrics_address"], "esr_in_flight") == 0)
        assert len(retrieval(facts["address"]).Retrieve(DRAW, timeout=10).item_ids) == 500


def test_what_was_acknowledged_survives_a_killed_worker_and_the_others_answer(bundles: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/feedback.db"
    with started(bundles, "--workers", "2", "--feedback-log", url) as (_, facts):
        reporters = [Reporter(facts["address"], 200_000 * number) for number in range(8)]
        for reporter in reporters:
            reporter.start()
        wait_until(lambda: min(len(reporter.acknowledged) for reporter in reporters) >= 5)
        os.kill(facts["worker_pids"][0], signal.SIGKILL)
        # connections to the other worker go on; who lost theirs ends
        survivors = [reporter for reporter in reporters if reporter.is_alive()]
        before = sum(len(reporter.acknowledged) for reporter in survivors)
        wait_until(lambda: sum(len(reporter.acknowledged) for reporter in survivors) > before + 20)
        assert len(drawn(retrieval(facts["address"]), 1).item_ids) == 5
        for reporter in reporters:
            reporter.ending.set()
            reporter.join(timeout=30)
    acknowledged = {name for reporter in reporters for name in reporter.acknowledged}
    assert len(acknowledged) > 40
    assert acknowledged <= {record.shown.request_id for record in read(url)}


def test_a_full_disk_stops_feedback_and_not_retrieval(bundles: Path, tmp_path: Path) -> None:
    with disk_at(tmp_path / "disk") as mount:
        folder = mount("size=1m")
        url = f"sqlite:///{folder}/feedback.db"
        with started(bundles, "--feedback-log", url) as (_, facts):
            stub = retrieval(facts["address"])
            acknowledged: list[str] = []

            def record(seed: int) -> None:
                shown = drawn(stub, seed, k=400)
                feedback = wire.RecordFeedbackRequest(shown=shown, slate=[0], rewards=[1.0])
                assert stub.RecordFeedback(feedback, timeout=20).is_new
                acknowledged.append(shown.request_id)

            with pytest.raises(grpc.RpcError) as raised:
                list(map(record, range(10_000)))
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            assert raised.value.details() == "the feedback log cannot be written: the disk is full"
            assert len(drawn(stub, 1).item_ids) == 5
            mount("size=8m")
            record(20_000)
        assert {record.shown.request_id for record in read(url)} >= set(acknowledged)
