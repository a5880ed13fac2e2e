"""Traces as collectors get them: from the SDK's own exporter, and over the wire from a real server."""

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode

from serving.access_log import AccessLog
from serving.current_call import Stage, describe_call, stages_of_call
from serving.errors import InternalError, InvalidRequestError
from serving.gate import Gate
from serving.reports import Reports
from serving.telemetry import Telemetry
from serving.tracing import Tracing
from serving.wire import retrieval_pb2
from tests.conftest import ROOT, started
from tests.serving.live import REQUEST, Admin, retrieval

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLER = [("traceparent", f"00-{TRACE}-{PARENT}-01"), ("a-bin", b"\xff")]
METHOD = "esr.v1.RetrievalService/Retrieve"


async def handler(request: bytes, context: Any) -> bytes:
    describe_call("an id", 3, 10, 1)
    start = time.monotonic()
    stages = stages_of_call()
    assert stages is not None
    await asyncio.sleep(0.01)
    stages.append(Stage("compute", start, time.monotonic(), 7))
    if request == b"ours":
        raise InternalError("a defect")
    if request == b"theirs":
        raise InvalidRequestError("k", "(0) must be at least 1")
    return b""


def spans_of(provider: TracerProvider, *requests: bytes) -> list[Any]:
    """The spans of some calls of the handler, on a real server, one after the other."""
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def run() -> None:
        with AccessLog("") as access_log:
            server = grpc.aio.server(interceptors=[Telemetry(Reports(access_log, Tracing(provider)), Gate())])
            methods = {"Call": grpc.unary_unary_rpc_method_handler(handler)}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", methods),))
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                call: Any = channel.unary_unary("/test.Service/Call")
                for request in requests:
                    await asyncio.gather(call(request, metadata=CALLER, timeout=10), return_exceptions=True)
            await server.stop(5)

    asyncio.run(run())
    return list(exporter.get_finished_spans())


def test_a_call_is_a_span_in_its_callers_trace_with_its_stages_inside() -> None:
    before = time.time_ns()
    stage, call = spans_of(TracerProvider(), b"")
    assert call.name == "test.Service/Call"
    assert call.kind is SpanKind.SERVER
    assert format(call.context.trace_id, "032x") == format(stage.context.trace_id, "032x") == TRACE
    assert format(call.parent.span_id, "016x") == PARENT
    assert stage.parent.span_id == call.context.span_id
    assert (stage.name, dict(stage.attributes)) == ("compute", {"esr.num_queries": 7})
    assert before <= call.start_time <= stage.start_time < stage.end_time <= call.end_time <= time.time_ns()
    assert dict(call.attributes) == {
        "rpc.system.name": "grpc",
        "rpc.method": "test.Service/Call",
        "rpc.response.status_code": "OK",
        "esr.request_id": "an id",
        "esr.model_version": 3,
        "esr.num_candidates": 10,
        "esr.num_queries": 1,
    }


def test_only_the_servers_own_failures_are_errors() -> None:
    calls = [span for span in spans_of(TracerProvider(), b"", b"theirs", b"ours") if span.name != "compute"]
    codes = [span.attributes["rpc.response.status_code"] for span in calls]
    assert codes == ["OK", "INVALID_ARGUMENT", "INTERNAL"]
    assert [span.status.status_code for span in calls] == [StatusCode.UNSET, StatusCode.UNSET, StatusCode.ERROR]
    assert [span.attributes.get("error.type") for span in calls] == [None, None, "INTERNAL"]


def test_what_the_sampler_leaves_out_is_not_recorded() -> None:
    sampler = ParentBased(ALWAYS_OFF, remote_parent_sampled=ALWAYS_OFF)
    assert spans_of(TracerProvider(sampler=sampler), b"") == []


class Span(NamedTuple):
    """A span as it came over the wire."""

    trace: str
    parent: str
    id: str
    name: str
    attributes: dict[str, Any]
    resource: dict[str, Any]


def values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


class Collector(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]
    """A collector that keeps what it gets."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.is_here = threading.Event()

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    ids = (span.trace_id.hex(), span.parent_span_id.hex(), span.span_id.hex())
                    facts = (values(span.attributes), values(resource.resource.attributes))
                    self.spans.append(Span(*ids, span.name, *facts))
        return trace_service_pb2.ExportTraceServiceResponse()

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector on this machine, which servers that are started now are told of."""
    with collecting() as (collector, address):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{address}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")  # so what comes is what an ending server sends
        monkeypatch.setenv("OTEL_SERVICE_NAME", "shop-retrieval")
        yield collector


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector, f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_server_sends_its_calls_to_the_collector_that_the_environment_names(
    collector: Collector, bundles: Path, tmp_path: Path
) -> None:
    options = ("--otel", "--feedback-log", str(tmp_path / "feedback.db"), "--admin-port", "0")
    with started(bundles, *options) as (process, facts):
        stub = retrieval(facts["address"])
        shown = stub.Retrieve(REQUEST, timeout=10, metadata=CALLER)
        stub.BatchRetrieve(retrieval_pb2.BatchRetrieveRequest(requests=[REQUEST] * 5), timeout=10)
        stub.RecordFeedback(retrieval_pb2.RecordFeedbackRequest(shown=shown, slate=[0], rewards=[1.0]), timeout=10)
        Admin(facts["admin_address"]).list()
        with pytest.raises(grpc.RpcError):
            stub.Retrieve(retrieval_pb2.RetrieveRequest(context_id="nobody", num_candidates=3), timeout=10)
        stub.GetModel(retrieval_pb2.GetModelRequest(), timeout=10)
        process.terminate()
        assert process.wait(timeout=30) == 0

    first, unknown = collector.named(METHOD)
    assert (first.trace, first.parent) == (TRACE, PARENT)
    assert first.attributes["esr.model_version"] == 1
    assert first.attributes["esr.num_candidates"] == 10
    assert first.resource["service.name"] == "shop-retrieval"
    assert first.resource["process.pid"] == process.pid
    assert [span.name for span in collector.spans if span.parent == first.id] == ["queue", "compute"]
    assert unknown.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert unknown.parent == ""
    assert not any("nobody" in str(span) for span in collector.spans)
    (batch,) = collector.named("esr.v1.RetrievalService/BatchRetrieve")
    inside = [span for span in collector.spans if span.parent == batch.id]
    assert batch.attributes["esr.num_queries"] == 5
    assert {span.name for span in inside} == {"queue", "compute"}
    assert sum(span.attributes["esr.num_queries"] for span in inside if span.name == "compute") == 5
    (feedback,) = collector.named("esr.v1.RetrievalService/RecordFeedback")
    assert [span.name for span in collector.spans if span.parent == feedback.id] == ["feedback"]
    assert collector.named("esr.v1.AdminService/ListVersions")
    assert collector.named("esr.v1.RetrievalService/GetModel")


def test_every_worker_sends(collector: Collector, bundles: Path) -> None:
    with started(bundles, "--otel", "--workers", "2") as (process, facts):
        for _ in range(12):
            retrieval(facts["address"]).Retrieve(REQUEST, timeout=10)
        process.terminate()
        assert process.wait(timeout=60) == 0
    calls = collector.named(METHOD)
    assert len(calls) == 12
    assert {span.resource["process.pid"] for span in calls} <= set(facts["worker_pids"])


def test_a_collector_that_never_answers_breaks_no_call_and_holds_no_end(
    bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # connections are taken, and nothing is ever said
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
        with started(bundles, "--otel") as (process, facts):
            assert len(retrieval(facts["address"]).Retrieve(REQUEST, timeout=10).item_ids) == 10
            process.terminate()
            assert process.wait(timeout=30) == 0, "sooner than the exporter's minute"


def test_without_the_option_nothing_of_opentelemetry_is_loaded(bundles: Path) -> None:
    program = (
        "import sys, serving.__main__, serving.server, serving.workers; "
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_the_option_without_the_extra_is_one_line(bundles: Path) -> None:
    program = (
        "import sys; sys.modules['opentelemetry'] = None; import runpy; "
        f"sys.argv = ['serving', 'serve', {str(bundles)!r}, '--port', '0', '--otel']; "
        "runpy.run_module('serving', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == "error: otel needs OpenTelemetry: pip install '.[otel]'\n"
