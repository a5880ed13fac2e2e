"""One of several processes that answer on one port, and what it and its supervisor tell each other.

A worker reads its assignment from stdin and takes the end of stdin as SIGTERM, so that none outlives a supervisor that
was killed; it answers one line of JSON on a pipe once it serves or cannot.
"""

import asyncio
import os
import shutil
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from serving.choice import Chosen
from serving.errors import BundleCorruptError, BundleUnusableError, ServingError
from serving.server import Started, Worker, run, serve, stop_signals
from serving.server_options import ServerOptions


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
