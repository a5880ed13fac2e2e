"""Several processes that answer on one port: a supervisor starts them, starts them again, and speaks for all.

The kernel spreads connections over the processes (SO_REUSEPORT), so a client uses several cores only through several
channels. Each process is a fresh interpreter, never a fork: FAISS hangs in a forked child. A worker reads its options
from stdin and takes the end of stdin as SIGTERM, so that none outlives a supervisor that was killed; it answers one
line of JSON on a pipe once it serves or cannot.
"""

import asyncio
import logging
import os
import shutil
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import prometheus_client
from prometheus_client import multiprocess
from pydantic import BaseModel, ConfigDict

from serving.choice import Chosen, chosen_at_start, keep
from serving.errors import BundleCorruptError, BundleUnusableError, NotServingError, ServingError
from serving.listening import administration, joined, metrics_endpoint, reserve
from serving.reports import opened
from serving.server import Started, Worker, run, serve, stop_signals
from serving.server_options import ServerOptions
from serving.wire import admin_pb2, admin_pb2_grpc

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0
"""Seconds before a worker that died is started again: doubled each time, and the first again after as long a life."""
OVERTIME = 15.0
"""Seconds that a worker may need for its end beyond those of the drain."""

log = logging.getLogger(__name__)


class WorkerError(ServingError):
    """A worker could not start; the message is its own."""


class Assignment(BaseModel):
    """What a worker reads from stdin."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    options: ServerOptions
    supervisor: int
    """Its process."""
    admin_socket: Path
    chosen: Chosen
    answer: int
    """Descriptor of the pipe to answer on."""


class Answer(BaseModel):
    """What a worker answers: what it serves, or why it cannot."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    started: Started | None = None
    problem: str = ""
    is_bundle_problem: bool = False


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
        reading, writing = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "serving.workers"),
                stdin=PIPE,
                pass_fds=(writing,),
                env={**os.environ, "OMP_NUM_THREADS": "1", "PROMETHEUS_MULTIPROC_DIR": str(self._directory)},
            )
        finally:
            os.close(writing)
        self.running[slot] = Running(process, socket)
        assignment = Assignment(
            options=self.options.model_copy(
                update={"workers": 1, **dict.fromkeys(("admin_port", "metrics_port", "choice_file"))}
            ),
            supervisor=os.getpid(),
            admin_socket=socket,
            chosen=(chosen := self.chosen),
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


class FanOutAdminService(admin_pb2_grpc.AdminServiceServicer):  # type: ignore[misc]
    """esr.v1.AdminService over all workers: they switch once every one of them has the version in memory."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self._changing = asyncio.Lock()

    async def ListVersions(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """List the versions as the worker that is behind the others knows them."""
        answers = await self._ask_all("ListVersions", request, context)
        return min(answers, key=lambda answer: answer.active_version)

    async def LoadVersion(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Load a version in every worker."""
        return (await self._ask_all("LoadVersion", request, context))[0]

    async def ActivateVersion(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Load a version in every worker; when all have it, switch."""
        async with self._changing:
            listing = await self.ListVersions(admin_pb2.ListVersionsRequest(), context)
            highest = max((version.version for version in listing.versions), default=0)
            chosen = Chosen(request.version or highest, request.follow_latest, highest)
            return await self._switch(chosen, context)

    async def RollBack(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Switch every worker to the version that was active before."""
        async with self._changing:
            listing = await self.ListVersions(admin_pb2.ListVersionsRequest(), context)
            if not listing.previous_version:
                raise BundleUnusableError("no version was active before this one")
            answer = await self._switch(Chosen(listing.previous_version, follows_latest=False), context)
            return admin_pb2.RollBackResponse(version=answer.version)

    async def _switch(self, chosen: Chosen, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        await self._ask_all("LoadVersion", admin_pb2.LoadVersionRequest(version=chosen.version), context)
        self.supervisor.chosen = chosen  # a worker that dies from here on comes back with it
        answer = (await self._ask_all("ActivateVersion", activation(chosen), context))[0]
        await asyncio.to_thread(keep, self.supervisor.options.choice_file, chosen)
        return answer

    async def _ask_all(self, method: str, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> list[Any]:
        """Every serving worker's answer to one method; the first refusal is the answer for all."""
        calls = (ask(worker.socket, method, request) for worker in self.supervisor.serving.values())
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, grpc.aio.AioRpcError) and answer.code() is not grpc.StatusCode.UNAVAILABLE:
                await context.abort(answer.code(), answer.details() or "", tuple(answer.trailing_metadata()))
        # A worker that could not be reached has died just now: it comes back with what was chosen.
        living = [answer for answer in answers if not isinstance(answer, BaseException)]
        if not living:
            raise NotServingError("no worker answers")
        return living


def activation(chosen: Chosen) -> Any:
    """What tells a worker an operator's choice."""
    return admin_pb2.ActivateVersionRequest(version=chosen.version, follow_latest=chosen.follows_latest)


async def ask(socket: Path, method: str, request: Any) -> Any:
    """One call of one worker's admin service."""
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        call: Callable[[Any], Coroutine[Any, Any, Any]] = getattr(admin_pb2_grpc.AdminServiceStub(channel), method)
        return await call(request)


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
        service = FanOutAdminService(supervisor)
        started = await supervisor.start()
        admin_address = await stack.enter_async_context(administration(options, reports, service))
        registry = prometheus_client.CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, str(directory))  # type: ignore[no-untyped-call]
        metrics_address = stack.enter_context(metrics_endpoint(options, registry))
        pids = [worker.process.pid for worker in supervisor.running.values()]
        where = (joined(options.host, port), admin_address, metrics_address)
        ready(Started(*where, started.model_id, started.version, started.context_id, pids))
        await stopping.wait()


async def work(assignment: Assignment) -> None:
    """Be one worker, until SIGTERM or the supervisor's end."""
    stopping = stop_signals()
    loop = asyncio.get_running_loop()

    def supervisor_ended() -> None:
        loop.remove_reader(sys.stdin.fileno())
        stopping.set()

    def answer(started: Started) -> None:
        tell(assignment, Answer(started=started))

    loop.add_reader(sys.stdin.fileno(), supervisor_ended)
    await serve(assignment.options, answer, stopping, Worker(assignment.admin_socket, assignment.chosen))


def tell(assignment: Assignment, answer: Answer) -> None:
    """Answer the supervisor, once."""
    with open(assignment.answer, "w") as pipe:
        pipe.write(answer.model_dump_json())


def main() -> int:
    """A worker's process."""
    assignment = Assignment.model_validate_json(sys.stdin.readline())
    try:
        run(work(assignment))
    except (ServingError, OSError) as error:
        is_bundle_problem = isinstance(error, BundleUnusableError | BundleCorruptError)
        tell(assignment, Answer(problem=str(error), is_bundle_problem=is_bundle_problem))
        return 2
    if os.getppid() != assignment.supervisor:  # it was killed, so nobody else removes what was shared
        shutil.rmtree(assignment.admin_socket.parent, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
