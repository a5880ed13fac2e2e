"""The server's life: listen, load, serve, drain. It never imports torch."""

import asyncio
import gc
import logging
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import prometheus_client
import uvloop
from grpc_health.v1 import health, health_pb2_grpc
from threadpoolctl import threadpool_limits

from esr_trainer.feedback_log import FeedbackLog, FeedbackLogUnavailableError, FeedbackLogUnusableError
from serving.admin_service import AdminService
from serving.choice import Chosen, chosen_at_start
from serving.dispatcher import Dispatcher
from serving.errors import BundleCorruptError, BundleUnusableError
from serving.feedback import FeedbackRecorder
from serving.gate import Gate
from serving.health import Health
from serving.listening import administration, bind, metrics_endpoint, new_server, private_administration
from serving.no_op import add_no_op
from serving.open_inference import NAME as INFERENCE
from serving.open_inference import InferenceService
from serving.reports import opened
from serving.server_options import OptionError, ServerOptions
from serving.service import NAME, RetrievalService
from serving.versions import Versions
from serving.wire import open_inference_pb2_grpc

STREAM_SECONDS = 1.0
"""How long streams may last once every call with an answer has it."""

log = logging.getLogger(__name__)


class Started(NamedTuple):
    """A server that answers: where, and with what."""

    address: str
    """`host:port`."""
    admin_address: str
    """Empty if the admin service is off."""
    metrics_address: str
    """Empty if metrics are off."""
    model_id: str
    """Empty while it waits for a bundle."""
    version: int
    """0 while it waits for a bundle."""
    context_id: str
    """One that the model knows, as an example."""
    worker_pids: list[int]
    """The processes that answer, if they are not this one."""


class Worker(NamedTuple):
    """What makes a server one of several on one port."""

    admin_socket: Path
    """Unix socket for the supervisor."""
    chosen: Chosen
    """What an operator chose before the worker was started."""


def run(life: Coroutine[Any, Any, None]) -> None:
    """Run a server's life on its event loop, with its log on stderr."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # numpy's and FAISS's threads would fight the other workers for the cores, and spin while they wait
    with threadpool_limits(1), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(life)


async def serve(
    options: ServerOptions,
    ready: Callable[[Started], None],
    stopping: asyncio.Event | None = None,
    worker: Worker | None = None,
) -> None:
    """Serve a bundle root until `stopping`, then drain.

    Args:
        options: where to listen, whom to let in, and so on.
        ready: called once requests are answered (or, waiting for a bundle, turned away).
        stopping: set when the server should end; by default SIGTERM and Ctrl-C do.
        worker: given if other processes share the port; such a one loads before it listens, so that the kernel hands
            it no connection that another could answer.

    Raises:
        ServingError: no bundle can be used, an address is taken, or the options do not fit.
    """
    stopping = stopping or stop_signals()
    chosen = worker.chosen if worker else chosen_at_start(options)
    versions = Versions(options.root, chosen, options.unknown_context)
    is_ready = Health("", NAME)
    async with AsyncExitStack() as stack:
        reports = stack.enter_context(opened(options.access_log, options.otel))
        if worker:
            await load(versions, options)
        gate = Gate()
        server = new_server(options, reports, gate, options.token_file, shares_port=worker is not None)
        stack.enter_context(services(server, versions, is_ready, options))
        health_pb2_grpc.add_HealthServicer_to_server(is_ready, server)
        address = bind(server, options, options.host, options.port, [NAME, INFERENCE, health.SERVICE_NAME])
        await server.start()
        stack.push_async_callback(server.stop, None)  # at once, unless it was drained before
        if worker:
            await stack.enter_async_context(private_administration(worker.admin_socket, AdminService(versions)))
        admin_address = await stack.enter_async_context(
            administration(options, reports, AdminService(versions, options.choice_file))
        )
        metrics_address = stack.enter_context(metrics_endpoint(options, prometheus_client.REGISTRY))
        if not worker:
            await load(versions, options)

        is_ready.set(versions.active is not None and not stopping.is_set())
        gc.freeze()  # or a full collection, over all that is loaded now, would hold every call for tens of milliseconds
        ready(Started(address, admin_address, metrics_address, *served(versions), []))
        watching = asyncio.create_task(watch(versions, is_ready, options.poll_seconds))
        await stopping.wait()
        watching.cancel()
        await drain(server, gate, is_ready, options)


async def drain(server: grpc.aio.Server, gate: Gate, is_ready: Health, options: ServerOptions) -> None:
    """Stop being ready, finish what was accepted, then end."""
    log.info("draining")
    is_ready.set(False)
    await asyncio.sleep(options.drain_delay)
    await gate.close(options.drain_seconds)
    is_ready.end_watches()
    stopped = asyncio.create_task(server.stop(STREAM_SECONDS))
    await asyncio.sleep(0)  # connections are told first that the server goes, or the released would come again
    gate.release()
    await stopped


def served(versions: Versions) -> tuple[str, int, str]:
    """Model id, version and an example of a context id."""
    if versions.active is None:
        return "", 0, ""
    bundle = versions.active.bundle
    return bundle.manifest.model_id, bundle.version, bundle.context_ids[0]


@contextmanager
def services(server: grpc.aio.Server, versions: Versions, is_ready: Health, options: ServerOptions) -> Iterator[None]:
    """What the server answers, besides health; at the block's end what was accepted has been done."""
    with ExitStack() as stack:
        dispatcher = stack.enter_context(closing(Dispatcher(options.max_in_flight)))
        recorder = None
        if options.feedback_log:
            recorder = stack.enter_context(closing(FeedbackRecorder(open_log(options.feedback_log))))
        limits = (min(options.max_batch, options.max_in_flight), options.max_message_bytes)
        RetrievalService(versions, dispatcher, recorder, *limits).add_to(server)
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            InferenceService(versions, dispatcher, is_ready), server
        )
        if options.no_op:
            add_no_op(server, versions, options.no_op)
        yield


def open_log(url: str) -> FeedbackLog:
    """The feedback log; one that cannot be written now is tried again with every record.

    Raises:
        OptionError: it is no feedback log.
    """
    try:
        return FeedbackLog.open(url)
    except FeedbackLogUnavailableError as error:
        log.warning("%s; retrieval goes on", error)
        return FeedbackLog(url)
    except FeedbackLogUnusableError as error:
        raise OptionError(str(error)) from error


async def load(versions: Versions, options: ServerOptions) -> None:
    """Load the first version, beside the event loop: liveness is answered meanwhile."""
    try:
        await asyncio.to_thread(versions.start)
    except (BundleUnusableError, BundleCorruptError) as error:
        if not options.wait_for_bundle or versions.chosen.version:
            raise
        log.warning("waiting for a bundle: %s", error)


async def watch(versions: Versions, is_ready: Health, seconds: float) -> None:
    """Follow the bundle root for ever; the server is ready from the first version on."""
    while True:
        is_ready.set(versions.active is not None)
        await asyncio.sleep(seconds)
        try:
            await asyncio.to_thread(versions.follow)
        except Exception:  # such as a file system that went away: what is loaded serves on
            log.exception("the bundle root could not be read")


def stop_signals() -> asyncio.Event:
    """An event that SIGTERM and Ctrl-C set, instead of ending the process."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    return stopping
