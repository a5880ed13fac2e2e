"""What a server tells of its calls: metrics over HTTP, an access log, and nothing of what it should keep."""

import asyncio
import json
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving import telemetry
from serving.access_log import AccessLog, Line
from serving.current_call import describe_call
from serving.gate import Gate
from serving.reports import Reports
from serving.telemetry import Telemetry, kept_from_surprises
from serving.wire import retrieval_pb2
from tests.conftest import run_module, started
from tests.serving.live import REQUEST, own_channel, retrieval, wait_until


def scrape(address: str) -> dict[tuple[str, ...], float]:
    """(name, values of the labels in their names' order...) -> value of every sample."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
        families = text_string_to_metric_families(page.read().decode())
        samples = [sample for family in families for sample in family.samples]
    return {(one.name, *(value for _, value in sorted(one.labels.items()))): one.value for one in samples}


def code_of(call: Callable[[], Any]) -> str:
    try:
        call()
        return "OK"
    except grpc.RpcError as error:
        name: str = error.code().name
        return name


def test_calls_are_counted_timed_and_logged(bundles: Path, tmp_path: Path) -> None:
    log, token = tmp_path / "access.log", tmp_path / "token"
    token.write_text("a-token-that-is-long-enough")
    options = (
        "--metrics-port",
        "0",
        "--access-log",
        str(log),
        "--token-file",
        str(token),
        "--max-message-bytes",
        "2000",
    )
    metadata = [("authorization", f"Bearer {token.read_text()}")]
    with started(bundles, *options) as (process, facts):
        stub = retrieval(facts["address"])
        unknown = retrieval_pb2.RetrieveRequest(context_id="a-secret-taste", num_candidates=10)
        too_large = retrieval_pb2.RetrieveRequest(context_id="x" * 3000, num_candidates=10)
        asked = [
            code_of(lambda: stub.Retrieve(REQUEST, metadata=metadata)),
            code_of(lambda: stub.Retrieve(REQUEST, metadata=metadata)),
            code_of(lambda: stub.Retrieve(unknown, metadata=metadata)),
            code_of(lambda: stub.Retrieve(retrieval_pb2.RetrieveRequest(context_id="5"), metadata=metadata)),
            code_of(lambda: stub.Retrieve(REQUEST)),
        ]
        assert asked == ["OK", "OK", "NOT_FOUND", "INVALID_ARGUMENT", "UNAUTHENTICATED"]
        assert code_of(lambda: stub.Retrieve(too_large, metadata=metadata)) == "RESOURCE_EXHAUSTED"
        with own_channel(facts["address"]) as channel:
            nothing = channel.unary_unary("/esr.v1.RetrievalService/Nothing-17")
            assert code_of(lambda: nothing(b"", metadata=metadata)) == "UNIMPLEMENTED"
        samples = scrape(facts["metrics_address"])
        process.terminate()
        assert process.wait(timeout=30) == 0

    method = "esr.v1.RetrievalService/Retrieve"
    for code, count in Counter(asked).items():
        assert samples["esr_requests_total", code, method] == count
    assert samples["esr_requests_total", "UNIMPLEMENTED", "unknown"] == 1
    assert not any("Nothing-17" in part for key in samples for part in key), "a caller's words make no series"
    assert samples["esr_stage_seconds_count", "handler"] >= len(asked)
    assert samples["esr_active_version",] == 1
    assert samples["esr_loads_total", "loaded"] == 1
    assert samples["process_resident_memory_bytes",] > 1e6

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert Counter(line["code"] for line in lines if line["method"] == method) >= Counter(asked)
    first = lines[0]
    assert first.keys() == {"time", "method", "code", "seconds", "peer", "model_version"}
    assert first["model_version"] == 1
    assert first["time"].startswith("20")
    assert 0 < first["seconds"] < 60
    for secret in ("a-token-that", "a-secret-taste"):
        assert secret not in log.read_text()


@pytest.mark.parametrize("needs_token", [False, True])
def test_invented_methods_add_one_series(needs_token: bool, bundles: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token-that-is-long-enough")
    options = ("--token-file", str(tmp_path / "token")) if needs_token else ()
    with started(bundles, "--metrics-port", "0", *options) as (_, facts), own_channel(facts["address"]) as channel:
        before = scrape(facts["metrics_address"]).keys()
        methods = [channel.unary_unary(f"/esr.v1.RetrievalService/Invented{number}") for number in range(50)]
        assert {code_of(partial(method, b"")) for method in methods} == {"UNIMPLEMENTED"}
        samples = scrape(facts["metrics_address"])
    added = {key for key in samples.keys() - before if key[0] != "esr_requests_created"}
    assert added == {("esr_requests_total", "UNIMPLEMENTED", "unknown")}
    assert samples["esr_requests_total", "UNIMPLEMENTED", "unknown"] == 50


def test_a_full_disk_breaks_no_call(bundles: Path) -> None:
    with started(bundles, "--metrics-port", "0", "--access-log", "/dev/full") as (process, facts):
        stub = retrieval(facts["address"])
        for lost in range(1, 4):  # one after the other, so that each is a failure of its own
            assert len(stub.Retrieve(REQUEST, timeout=10).item_ids) == 10
            wait_until(lambda lost=lost: scrape(facts["metrics_address"])["esr_access_log_lost_total",] == lost)
        process.terminate()
        errors = process.communicate()[1]
    assert process.returncode == 0
    assert errors.count("access log cannot be written") == 1


def test_a_rotated_access_log_is_begun_anew(bundles: Path, tmp_path: Path) -> None:
    log, moved = tmp_path / "access.log", tmp_path / "access.log.1"
    with started(bundles, "--access-log", str(log)) as (process, facts):
        stub = retrieval(facts["address"])
        stub.Retrieve(REQUEST, timeout=10)
        wait_until(lambda: log.stat().st_size)
        log.rename(moved)
        stub.Retrieve(REQUEST, timeout=10)
        wait_until(lambda: log.exists() and log.stat().st_size)
        log.unlink()
        stub.Retrieve(REQUEST, timeout=10)
        process.terminate()
        assert process.wait(timeout=30) == 0
    assert [len(path.read_text().splitlines()) for path in (moved, log)] == [1, 1]


def test_a_full_queue_that_the_writer_empties_meanwhile_breaks_no_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.access_log.MOST_PENDING", 0)  # full when looked at, empty when the oldest is taken
    with AccessLog(str(tmp_path / "log")) as access_log:
        access_log.add(Line(0.0, "Call", "OK", 0.1, "peer", "", 0))
    assert codes(tmp_path / "log") == ["OK"]


def test_an_access_log_that_cannot_be_opened_is_one_line(bundles: Path, tmp_path: Path) -> None:
    done = run_module("serving", "serve", bundles, "--port", "0", "--access-log", tmp_path / "no" / "log")
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path}/no/log: No such file or directory\n"


def called(
    handler: Callable[[Any, Any], Awaitable[bytes]], log: Path, *timeouts: float
) -> list[grpc.aio.AioRpcError | bytes]:
    """The ends of concurrent calls of one handler behind the interceptor, on a real server."""

    async def run() -> list[Any]:
        with AccessLog(str(log)) as access_log:
            server = grpc.aio.server(interceptors=[Telemetry(Reports(access_log), Gate())])
            methods = {"Call": grpc.unary_unary_rpc_method_handler(handler)}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", methods),))
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:  # not on the server's loop
                call = channel.unary_unary("/test.Service/Call")
                calls = (asyncio.to_thread(call, b"", timeout=seconds) for seconds in timeouts)
                ends = await asyncio.gather(*calls, return_exceptions=True)
            await asyncio.sleep(0.1)  # a server learns of a deadline when its client does
            await server.stop(5)
            return ends

    return asyncio.run(run())


def codes(log: Path) -> list[str]:
    return [json.loads(line)["code"] for line in log.read_text().splitlines()]


def test_a_surprise_is_told_to_the_log_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def surprise(request: Any, context: Any) -> bytes:
        raise KeyError("/a/path/of/the/server")

    (end,) = called(surprise, tmp_path / "log", 10)
    assert isinstance(end, grpc.RpcError)
    assert end.code() is grpc.StatusCode.INTERNAL
    assert "path" not in (end.details() or "")
    assert "/a/path/of/the/server" in caplog.text
    assert codes(tmp_path / "log") == ["INTERNAL"]


def test_no_work_begins_after_the_deadline() -> None:
    class Late:
        """The border to gRPC's core, which seldom hands over a call as late as this one."""

        def time_remaining(self) -> float:
            return 0.0

        async def abort(self, code: grpc.StatusCode, details: str) -> None:
            raise grpc.aio.AbortError(code)

    async def work(request: Any, context: Any) -> bytes:
        raise AssertionError("work began")

    with pytest.raises(grpc.aio.AbortError, match="DEADLINE_EXCEEDED"):
        asyncio.run(kept_from_surprises(work, bytes, b"", Late()))


def test_work_stops_at_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "TRANSIT", 0.2)  # a busy machine may let a call wait for longer before it is read
    stopped = []

    async def slow(request: Any, context: Any) -> bytes:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            stopped.append(True)
            raise
        return b""

    called(slow, tmp_path / "log", 0.2)
    assert stopped == [True]
    assert codes(tmp_path / "log") == ["DEADLINE_EXCEEDED"]


@pytest.mark.parametrize(
    ("left", "code"),
    [(None, "CANCELLED"), (0.1, "CANCELLED"), (0.01, "DEADLINE_EXCEEDED"), (-1.0, "DEADLINE_EXCEEDED")],
)
def test_a_caller_whose_clock_began_earlier_gave_up_at_its_deadline(left: float | None, code: str) -> None:
    class Context:
        @staticmethod
        def time_remaining() -> float | None:
            return left

    assert telemetry.code_of(asyncio.CancelledError(), Context) == code


def test_a_handler_describes_its_own_call(tmp_path: Path) -> None:
    async def described(request: Any, context: Any) -> bytes:
        describe_call('one\n"two"', 7)
        return b""

    called(described, tmp_path / "log", 10, 10)
    for line in (tmp_path / "log").read_text().splitlines():
        assert json.loads(line)["request_id"] == 'one\n"two"'
        assert json.loads(line)["model_version"] == 7
    describe_call("outside of any call", 1)
