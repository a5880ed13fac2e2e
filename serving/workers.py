"""Several processes that answer on one port: a supervisor starts them, starts them again, and speaks for all.

The kernel spreads connections over the processes (SO_REUSEPORT), so a client uses several cores only through several
channels. Each process is a fresh interpreter (serving.worker), never a fork: FAISS hangs in a forked child.
"""

import asyncio
import logging
import os
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import grpc
import prometheus_client
from prometheus_client import multiprocess

from serving.choice import Chosen, chosen_at_start
from serving.errors import BundleUnusableError, ServingError
from serving.fan_out import FanOutAdminService, activation, ask
from serving.listening import administration, joined, metrics_endpoint, reserve
from serving.reports import opened
from serving.server import Started, stop_signals
from serving.server_options import ServerOptions
from serving.worker import Answer, Assignment

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0
"""Seconds before a worker that died is started again: doubled each time, and the first again after as long a life."""
OVERTIME = 15.0
"""Seconds that a worker may need for its end beyond those of the drain."""

log = logging.getLogger(__name__)


class WorkerError(ServingError):
    """A worker could not start; the message is its own."""


class Running(NamedTuple):
    """A worker that was started."""

    process: Process
    socket: Path


class Supervisor:
    """Starts workers, starts them again when they die, and ends them."""

    def __init__(self, options: ServerOptions, directory: Path) -> None:
        self.options = options
        self.chosen = chosen_at_start(options)
        self.running: dict[int, Running] = {}
        """By slot, from 0."""
        self.serving: dict[int, Running] = {}
        """Those that have answered, and have not ended."""
        self._directory = directory
        self._keepers: list[asyncio.Task[None]] = []

    def sockets(self) -> list[Path]:
        """Where the workers that serve are asked."""
        return [worker.socket for worker in self.serving.values()]

    def choose(self, chosen: Chosen) -> None:
        """Have workers that start from now on serve what an operator chose."""
        self.chosen = chosen

    async def start(self) -> Started:
        """Start every worker; what the first one serves.

        Raises:
            ServingError: the first problem that a worker met.
        """
        started = await asyncio.gather(*(self._start(slot) for slot in range(self.options.workers)))
        self._keepers = [asyncio.create_task(self._keep(slot)) for slot in self.running]
        return started[0]

    async def stop(self) -> None:
        """Have every worker drain, and wait for its end."""
        for keeper in self._keepers:
            keeper.cancel()
        if not self.running:
            return
        processes = [worker.process for worker in self.running.values()]
        for process in processes:
            with suppress(ProcessLookupError):
                process.terminate()
        patience = self.options.drain_delay + self.options.drain_seconds + OVERTIME
        _, late = await asyncio.wait([asyncio.create_task(process.wait()) for process in processes], timeout=patience)
        if late:
            log.error("%d workers did not end and are killed", len(late))
            for process in processes:
                with suppress(ProcessLookupError):
                    process.kill()

    async def _start(self, slot: int) -> Started:
        socket = self._directory / f"worker-{slot}.sock"
        socket.unlink(missing_ok=True)
        chosen = self.chosen
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "serving.worker"),
                stdin=PIPE,
                pass_fds=(writing,),
                env={**os.environ, "OMP_NUM_THREADS": "1", "PROMETHEUS_MULTIPROC_DIR": str(self._directory)},
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self.running[slot] = Running(process, socket)
        assignment = Assignment(
            options=self.options.model_copy(
                update={"workers": 1, **dict.fromkeys(("admin_port", "metrics_port", "choice_file"))}
            ),
            supervisor=os.getpid(),
            admin_socket=socket,
            chosen=chosen,
            answer=writing,
        )
        assert process.stdin is not None
        process.stdin.write(assignment.model_dump_json().encode() + b"\n")
        line = await asyncio.to_thread(read_to_the_end, reading)
        answer = Answer.model_validate_json(line or '{"problem": "a worker ended before it served"}')
        if answer.started is None:
            raise (BundleUnusableError if answer.is_bundle_problem else WorkerError)(answer.problem)
        self.serving[slot] = self.running[slot]
        if self.chosen != chosen:  # while the worker was loading
            await ask(socket, "ActivateVersion", activation(self.chosen))
        return answer.started

    async def _keep(self, slot: int) -> None:
        clock = asyncio.get_running_loop().time
        pause, since = FIRST_PAUSE, clock()
        while True:
            process = self.running[slot].process
            code = await process.wait()
            self.serving.pop(slot, None)
            multiprocess.mark_process_dead(process.pid, str(self._directory))  # type: ignore[no-untyped-call]
            pause = FIRST_PAUSE if clock() - since > LONGEST_PAUSE else min(2 * pause, LONGEST_PAUSE)
            log.warning("worker %d (pid %d) ended with %d; again in %.1f s", slot, process.pid, code, pause)
            await asyncio.sleep(pause)
            since = clock()
            try:
                await self._start(slot)
            except (ServingError, OSError, grpc.aio.AioRpcError) as error:
                log.warning("worker %d cannot start: %s", slot, error)


def read_to_the_end(descriptor: int) -> bytes:
    """What a pipe carries until its other end closes."""
    with open(descriptor, "rb") as pipe:
        return pipe.read()


async def supervise(options: ServerOptions, ready: Callable[[Started], None]) -> None:
    """Serve with `options.workers` processes until SIGTERM or Ctrl-C, then have them drain.

    Args:
        options: as for one process.
        ready: called once every worker answers.

    Raises:
        ServingError: no bundle can be used, an address is taken, or the options do not fit.
    """
    stopping = stop_signals()
    async with AsyncExitStack() as stack:
        held = stack.enter_context(reserve(options.host, options.port))
        port = held.getsockname()[1]
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="esr-workers-")))
        has_calls = options.admin_port is not None
        reports = stack.enter_context(opened(options.access_log if has_calls else "", options.otel and has_calls))
        supervisor = Supervisor(options.model_copy(update={"port": port}), directory)
        stack.push_async_callback(supervisor.stop)
        service = FanOutAdminService(supervisor, options.choice_file)
        started = await supervisor.start()
        admin_address = await stack.enter_async_context(administration(options, reports, service))
        registry = prometheus_client.CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, str(directory))  # type: ignore[no-untyped-call]
        metrics_address = stack.enter_context(metrics_endpoint(options, registry))
        pids = [worker.process.pid for worker in supervisor.running.values()]
        where = (joined(options.host, port), admin_address, metrics_address)
        ready(Started(*where, started.model_id, started.version, started.context_id, pids))
        await stopping.wait()
