"""What every call passes at the server's edge: it is timed, counted and reported, and no surprise of the code gets out.

Calls with one request and one answer are covered; streams (health Watch, reflection) pass as they are.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health

from serving.access_log import Line
from serving.current_call import Facts, begin_call
from serving.errors import OverloadedError, ServingError
from serving.gate import Gate
from serving.metrics import REQUESTS, STAGE_SECONDS
from serving.refusals import refuse
from serving.reports import Reports

Parse = Callable[[bytes], Any]
Behaviour = Callable[[Any, Any], Awaitable[Any]]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # quoted: the real class takes no parameters
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"

log = logging.getLogger(__name__)

_rejected_seconds = STAGE_SECONDS.labels("rejected")


class Guard(grpc.aio.ServerInterceptor):
    """Keeps surprises in, and ends refused calls with their status."""

    def __init__(self) -> None:
        self._handlers: dict[tuple[str, Handler], Handler] = {}

    async def intercept_service(
        self,
        continuation: Continuation,
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the method's handler, once per handler."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        key = (handler_call_details.method, handler)
        wrapped = self._handlers.get(key)
        if wrapped is None:
            around = self._around(handler_call_details.method.lstrip("/"), handler)
            # bytes: what cannot be parsed would be answered by gRPC with UNKNOWN and Python's names
            wrapped = grpc.unary_unary_rpc_method_handler(around, bytes, handler.response_serializer)
            self._handlers[key] = wrapped
        return wrapped

    def _around(self, method: str, handler: Handler) -> Behaviour:
        """What a method's calls pass."""
        behaviour: Behaviour = handler.unary_unary  # type: ignore[assignment]  # of an aio server
        return partial(kept_from_surprises, behaviour, handler.request_deserializer or bytes)


class _Count(Protocol):
    def inc(self) -> None: ...


class Telemetry(Guard):
    """Times, counts, logs and traces calls; the outermost interceptor, so that refusals of the others are seen too."""

    def __init__(self, reports: Reports, gate: Gate) -> None:
        super().__init__()
        self._reports = reports
        self._gate = gate
        self._seconds = STAGE_SECONDS.labels("handler")
        self._counts: dict[tuple[str, str], _Count] = {}

    async def intercept_service(
        self,
        continuation: Continuation,
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the method's handler, once per handler; a method that there is not is counted too."""
        wrapped = await super().intercept_service(continuation, handler_call_details)
        if wrapped is None:
            self._count("unknown", "UNIMPLEMENTED")  # not the caller's own word: it could make any number of series
        return wrapped

    def _around(self, method: str, handler: Handler) -> Behaviour:
        guarded = super()._around(method, handler)
        is_health = method.startswith(health.SERVICE_NAME)
        gate = Gate() if is_health else self._gate  # health is told to the end
        access_log, traces = self._reports.access_log, None if is_health else self._reports.traces

        async def watched(request: Any, context: Any) -> Any:
            facts = Facts(keeps_stages=traces is not None)
            begin_call(facts)
            came, start = time.time(), time.monotonic()
            code = "OK"
            try:
                if not gate.is_open:
                    await gate.knock()
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is draining")
                with gate:
                    return await guarded(request, context)
            except BaseException as error:
                code = code_of(error, context)
                raise
            finally:
                seconds = time.monotonic() - start
                self._seconds.observe(seconds)
                self._count(method, code)
                access_log.add(Line(came, method, code, seconds, context.peer(), facts.request_id, facts.model_version))
                if traces is not None:
                    traces.record(method, code, start, context.invocation_metadata() or (), facts)

        return watched

    def _count(self, method: str, code: str) -> None:
        count = self._counts.get((method, code))
        if count is None:
            count = self._counts[method, code] = REQUESTS.labels(method, code)
        count.inc()


async def kept_from_surprises(behaviour: Behaviour, parse: Parse, content: bytes, context: Any) -> Any:
    """Run a handler unless the call's deadline has passed.

    A refusal ends the call with its status; an error that the handler did not foresee goes to the log alone.
    """
    left = context.time_remaining()
    if left is not None and left <= 0:
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before work began")
    try:
        request = parse(content)
    except DecodeError:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the request ({len(content)} bytes) is no such message")
    start = time.monotonic()
    try:
        return await behaviour(request, context)
    except (grpc.aio.AbortError, asyncio.CancelledError):
        raise
    except ServingError as error:
        if isinstance(error, OverloadedError):
            _rejected_seconds.observe(time.monotonic() - start)
        await refuse(context, error)
    except Exception:
        log.exception("a call failed")
        await context.abort(grpc.StatusCode.INTERNAL, "internal error; the server's log has it")


TRANSIT = 0.05
"""Seconds. The caller's clock began to run before ours: who gives up this shortly before the deadline kept to it."""


def code_of(error: BaseException, context: Any) -> str:
    """The status that a call ends with, as its client sees it: a cancelled handler's own code says nothing."""
    if isinstance(error, asyncio.CancelledError):
        left = context.time_remaining()
        return "CANCELLED" if left is None or left > TRANSIT else "DEADLINE_EXCEEDED"
    code = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else "UNKNOWN"
