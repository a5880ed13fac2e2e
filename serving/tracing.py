"""OpenTelemetry: a span of each call, with its stages as children, to a collector (OTLP over gRPC).

The SDK reads the standard OTEL_* variables of the environment: endpoint, headers, sampler, service name, propagators.
Spans are made when a call has ended and sent by a thread of the SDK: a slow collector loses spans, and delays no call.
This module is loaded only where tracing is on (`pip install '.[otel]'`).
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version as version_of
from typing import Self

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.util.types import AttributeValue

from serving.current_call import Facts

NAME = "early-stage-retriever"
"""The distribution, and the service unless OTEL_SERVICE_NAME says otherwise."""
LAST_SECONDS = 2.0
"""How long an ending server waits for its last spans to be taken."""
OUR_FAULT = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
"""Statuses with which a server's span is an error, by OpenTelemetry's conventions for gRPC."""


class Tracing:
    """Makes spans of calls."""

    def __init__(self, provider: TracerProvider, give_up: Callable[[], object] = lambda: None) -> None:
        """Make spans with a provider; `give_up` ends an export of its that goes on."""
        self._provider = provider
        self._give_up = give_up
        self._tracer = provider.get_tracer("serving", version_of(NAME))

    @classmethod
    def to_collector(cls) -> Self:
        """Send spans where the environment says; http://localhost:4317 if it does not."""
        detected = OTELResourceDetector().detect().attributes
        own: dict[str, AttributeValue] = {
            "service.name": NAME,
            "service.version": version_of(NAME),
            "process.pid": os.getpid(),
        }
        provider = TracerProvider(resource=Resource.create({**own, **detected}), shutdown_on_exit=False)
        exporter = OTLPSpanExporter()
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider, exporter.shutdown)

    def record(
        self, method: str, code: str, start: float, metadata: Sequence[tuple[str, str | bytes]], facts: Facts
    ) -> None:
        """Make the span of a call that ends now.

        Args:
            method: `package.Service/Method`.
            code: name of the gRPC status.
            start: time.monotonic() of the handler's entry.
            metadata: of the caller; its `traceparent` (W3C) names the parent.
            facts: what was said of the call.
        """
        end, now = time.monotonic(), time.time_ns()

        def clock(at: float) -> int:
            return now - int((end - at) * 1e9)

        parent = extract({name: value for name, value in metadata if isinstance(value, str)})
        span = self._tracer.start_span(
            method, parent, trace.SpanKind.SERVER, attributes_of(method, code, facts), start_time=clock(start)
        )
        if span.is_recording():
            inside = trace.set_span_in_context(span, parent)
            for stage in facts.stages or ():
                attributes = {"esr.num_queries": stage.num_queries}
                child = self._tracer.start_span(
                    stage.name, inside, attributes=attributes, start_time=clock(stage.start)
                )
                child.end(clock(stage.end))
            if code in OUR_FAULT:
                span.set_status(trace.StatusCode.ERROR)
        span.end(now)

    def close(self) -> None:
        """Send what is left, for LAST_SECONDS at most."""
        late = threading.Timer(LAST_SECONDS, self._give_up)
        late.start()
        self._provider.shutdown()
        late.cancel()


def attributes_of(method: str, code: str, facts: Facts) -> dict[str, AttributeValue]:
    """A call's attributes: OpenTelemetry's for RPCs, and ours; never a token, a context or an item."""
    attributes: dict[str, AttributeValue] = {
        "rpc.system.name": "grpc",
        "rpc.method": method,
        "rpc.response.status_code": code,
    }
    if code in OUR_FAULT:
        attributes["error.type"] = code
    own: dict[str, AttributeValue] = {
        "esr.request_id": facts.request_id,
        "esr.model_version": facts.model_version,
        "esr.num_candidates": facts.num_candidates,
        "esr.num_queries": facts.num_queries,
    }
    return attributes | {name: value for name, value in own.items() if value}
