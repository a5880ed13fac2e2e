"""RecordFeedback over the wire, into a real SQLite and a real PostgreSQL; and what may go wrong beside it."""

import asyncio
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from esr_trainer.feedback_log import Feedback, FeedbackLog, Outcome, read
from serving.errors import OverloadedError
from serving.feedback import FeedbackRecorder
from serving.wire import retrieval_pb2 as wire
from serving.wire import retrieval_pb2_grpc
from tests.conftest import serving
from tests.postgres import PostgresServer
from tests.serving.live import own_channel


@contextmanager
def stub_of(root: Path, url: str, *arguments: str) -> Iterator[tuple[Any, subprocess.Popen[str]]]:
    """A client of a server that writes a log."""
    with (
        serving(root, "--feedback-log", url, *arguments) as (process, address),
        grpc.insecure_channel(address) as channel,
    ):
        yield retrieval_pb2_grpc.RetrievalServiceStub(channel), process


def drawn(stub: Any, seed: int, k: int = 5) -> Any:
    request = wire.RetrieveRequest(context_id=str(seed % 1000), num_candidates=k, sampling=wire.Sampling(seed=seed))
    return stub.Retrieve(request, timeout=10)


def status(call: Any, request: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        call(request, timeout=10)
    return raised.value.code(), raised.value.details()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/feedback.db"
    postgres: PostgresServer = request.getfixturevalue("postgres")
    return postgres.new_database()


def test_what_was_shown_comes_back_with_its_rewards(bundles: Path, url: str) -> None:
    with stub_of(bundles, url) as (stub, _):
        shown = drawn(stub, 7)
        greedy = stub.Retrieve(wire.RetrieveRequest(context_id="3", num_candidates=4, request_id="greedy"), timeout=10)
        first = wire.RecordFeedbackRequest(
            shown=shown, slate=[2, 0], slate_probabilities=[0.5, 0.25], rewards=[1.0, 0.0]
        )
        assert stub.RecordFeedback(first, timeout=10).is_new
        assert not stub.RecordFeedback(first, timeout=10).is_new, "sent again, recorded once"
        assert stub.RecordFeedback(
            wire.RecordFeedbackRequest(shown=greedy, slate=[1], rewards=[0.5]), timeout=10
        ).is_new
        first.rewards[0] = 2.0
        code, details = status(stub.RecordFeedback, first)
        assert code is grpc.StatusCode.ALREADY_EXISTS
        assert details == f"request_id ({shown.request_id}): other feedback was recorded for it"
    found = {record.shown.request_id: record for record in read(url)}
    assert set(found) == {shown.request_id, "greedy"}
    record = found[shown.request_id]
    assert record.shown.candidates == tuple(shown.item_ids)
    assert record.shown.inclusion_propensities == tuple(shown.inclusion_propensities)
    assert record.shown.log_probability == shown.log_probability
    assert (record.shown.context_id, record.shown.mode, record.shown.model_version) == ("7", "sampled", 1)
    assert record.slate == (shown.item_ids[2], shown.item_ids[0])
    assert (record.lsr_probabilities, record.rewards) == ((0.5, 0.25), (1.0, 0.0))
    assert found["greedy"].shown.mode == "greedy"
    assert found["greedy"].lsr_probabilities == ()


def test_feedback_that_breaks_a_rule_is_refused_with_the_field(bundles: Path, tmp_path: Path) -> None:
    with stub_of(bundles, f"sqlite:///{tmp_path}/feedback.db") as (stub, _):
        shown = drawn(stub, 7)
        for change, field in (
            ({"slate": [5], "rewards": [1.0]}, "slate (5) must be below the 5 items shown"),
            ({"slate": [0, 0], "rewards": [1.0, 1.0]}, "slate"),
            ({"slate": [0], "rewards": [1.0, 2.0]}, "rewards"),
            ({"slate": [0], "rewards": [float("nan")]}, "rewards"),
            ({"slate": [0], "rewards": [1.0], "slate_probabilities": [1.5]}, "lsr_probabilities"),
        ):
            code, details = status(stub.RecordFeedback, wire.RecordFeedbackRequest(shown=shown, **change))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert details.startswith(field)
        other = wire.RetrieveResponse()
        other.CopyFrom(shown)
        other.mode = wire.MODE_UNSPECIFIED
        code, details = status(stub.RecordFeedback, wire.RecordFeedbackRequest(shown=other, slate=[0], rewards=[1.0]))
        assert (code, details) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "shown.mode (0) must be greedy or sampled, as it came",
        )
        forged = wire.RetrieveResponse()
        forged.CopyFrom(shown)
        forged.inclusion_propensities[0] = 0.0
        code, _ = status(stub.RecordFeedback, wire.RecordFeedbackRequest(shown=forged, slate=[0], rewards=[1.0]))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        code, _ = status(stub.RecordFeedback, wire.RecordFeedbackRequest())
        assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_server_without_a_log_says_so(server: str) -> None:
    with grpc.insecure_channel(server) as channel:
        stub = retrieval_pb2_grpc.RetrievalServiceStub(channel)
        request = wire.RecordFeedbackRequest(shown=drawn(stub, 1), slate=[0], rewards=[1.0])
        code, details = status(stub.RecordFeedback, request)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert details == "RecordFeedback: this server was started without a feedback log"


class Reporter(threading.Thread):
    """Shows and reports for as long as it can; keeps what was acknowledged."""

    def __init__(self, address: str, first: int) -> None:
        super().__init__(daemon=True)
        self.address = address
        self.first = first
        self.acknowledged: list[str] = []
        self.ending = threading.Event()

    def run(self) -> None:
        with own_channel(self.address) as channel:
            stub = retrieval_pb2_grpc.RetrievalServiceStub(channel)
            for number in range(self.first, self.first + 100_000):
                if self.ending.is_set():
                    return
                try:
                    shown = drawn(stub, number)
                    stub.RecordFeedback(wire.RecordFeedbackRequest(shown=shown, slate=[0], rewards=[1.0]), timeout=10)
                except grpc.RpcError:
                    return
                self.acknowledged.append(shown.request_id)


def test_what_was_acknowledged_survives_a_killed_server(bundles: Path, url: str) -> None:
    with serving(bundles, "--feedback-log", url) as (process, address):
        reporters = [Reporter(address, 200_000 * number) for number in range(8)]
        for reporter in reporters:
            reporter.start()
        while min(len(reporter.acknowledged) for reporter in reporters) < 10:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        for reporter in reporters:
            reporter.join(timeout=30)
    acknowledged = {name for reporter in reporters for name in reporter.acknowledged}
    logged = {record.shown.request_id for record in read(url)}
    assert len(acknowledged) >= 80
    assert acknowledged <= logged
    assert len(logged) <= len(acknowledged) + 8, "at most what was on its way beside"


def test_retrieval_goes_on_while_the_log_cannot_be_written(bundles: Path, tmp_path: Path) -> None:
    """The log's folder is taken away, as when a disk is gone, and comes back."""
    folder = tmp_path / "log"
    folder.mkdir()
    with stub_of(bundles, f"sqlite:///{folder}/feedback.db") as (stub, _):
        shown = [drawn(stub, number) for number in range(3)]
        requests = [wire.RecordFeedbackRequest(shown=one, slate=[0], rewards=[1.0]) for one in shown]
        assert stub.RecordFeedback(requests[0], timeout=10).is_new
        folder.rename(tmp_path / "away")
        code, details = status(stub.RecordFeedback, requests[1])
        assert code is grpc.StatusCode.UNAVAILABLE
        assert str(tmp_path) not in details
        assert len(drawn(stub, 9).item_ids) == 5, "retrieval goes on"
        (tmp_path / "away").rename(folder)
        assert stub.RecordFeedback(requests[1], timeout=10).is_new
        assert stub.RecordFeedback(requests[2], timeout=10).is_new
    assert len(list(read(f"sqlite:///{folder}/feedback.db"))) == 3


def test_a_slow_database_holds_up_its_callers_alone(bundles: Path, postgres: PostgresServer) -> None:
    url = postgres.new_database()
    with stub_of(bundles, url) as (stub, _):
        shown = drawn(stub, 1)
        request = wire.RecordFeedbackRequest(shown=shown, slate=[0], rewards=[1.0])
        other = wire.RecordFeedbackRequest(shown=drawn(stub, 2), slate=[0], rewards=[1.0])
        assert stub.RecordFeedback(request, timeout=10).is_new
        with postgres.session(url.partition("@/")[2].partition("?")[0]) as connection:
            connection.exec_driver_sql("BEGIN")
            connection.exec_driver_sql("LOCK TABLE esr_feedback IN ACCESS EXCLUSIVE MODE")
            waiting = stub.RecordFeedback.future(other, timeout=0.5)
            for seed in range(20):
                assert len(drawn(stub, seed).item_ids) == 5, "retrieval goes on"
            assert waiting.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            connection.exec_driver_sql("ROLLBACK")
        assert stub.RecordFeedback(other, timeout=20).is_new in (True, False), "it was kept, or can be sent again"


def test_callers_that_give_up_still_count_while_their_feedback_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving import feedback
    from tests.feedback_writer import feedback as record_of

    may_write = threading.Event()

    class SlowLog(FeedbackLog):
        def record(self, batch: Sequence[Feedback]) -> list[Outcome]:
            may_write.wait(30)
            return super().record(batch)

    async def scenario() -> None:
        recorder = FeedbackRecorder(SlowLog.open(f"sqlite:///{tmp_path}/feedback.db"))
        monkeypatch.setattr(feedback, "MAX_WAITING", 3)
        callers = [asyncio.create_task(recorder.record(record_of(number))) for number in range(3)]
        await asyncio.sleep(0)
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        with pytest.raises(OverloadedError, match="3 records wait for the feedback log"):
            await recorder.record(record_of(3))
        may_write.set()
        await asyncio.to_thread(recorder.close)
        await asyncio.sleep(0)
        assert len(list(read(f"sqlite:///{tmp_path}/feedback.db"))) == 3, "what was taken is written"

    asyncio.run(scenario())
