"""Where it is told what became of each call, beside the metrics: the access log, and traces if they are on."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import NamedTuple, Protocol

from serving.access_log import AccessLog
from serving.current_call import Facts
from serving.server_options import OptionError


class Traces(Protocol):
    """What serving.tracing makes, which is loaded only where it is asked for."""

    def record(
        self, method: str, code: str, start: float, metadata: Sequence[tuple[str, str | bytes]], facts: Facts
    ) -> None:
        """Make the span of a call that ends now."""


class Reports(NamedTuple):
    """The access log and the traces of a process."""

    access_log: AccessLog
    traces: Traces | None = None


@contextmanager
def opened(access_log: str, otel: bool) -> Iterator[Reports]:
    """The reports within the block; at its end, what is left is written and sent.

    Raises:
        OSError: the access log cannot be opened.
        OptionError: OpenTelemetry is not installed.
    """
    with ExitStack() as stack:
        log = stack.enter_context(AccessLog(access_log))
        traces = None
        if otel:
            try:
                from serving.tracing import Tracing
            except ImportError as error:
                raise OptionError("otel needs OpenTelemetry: pip install '.[otel]'") from error
            traces = stack.enter_context(closing(Tracing.to_collector()))
        yield Reports(log, traces)
