"""The closed loop: serve with sampling, record feedback, learn from the log, judge, publish; round after round.

Each stage is the command that a user would run, in a process of its own: what the rounds reach is what the system
reaches, not what its parts do in one process.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from esr_trainer.command_line import UsageError
from esr_trainer.config import TrainConfig
from esr_trainer.world import World
from offline_eval.simulated_users import SimulatedUsers
from offline_eval.verdict import EXIT_CODES, Decision

SWITCH_SECONDS = 60.0
"""How long a server may take to switch to a new version."""

PROMOTE = EXIT_CODES["promote"]


class LoopRound(NamedTuple):
    """How a round ended."""

    number: int
    """0 is the logging policy."""
    visits: int
    """Recorded so far."""
    mean_reward: float | None
    """Per visit of this round, under the candidates that were drawn; None for round 0."""
    decision: Decision | None
    """Of the new checkpoint against the one that serves; None for round 0."""
    because: str
    """What led to it, in a line."""
    version: int
    """The version that serves from here on."""
    policy_value: float
    """Of the greedy candidates that it serves, asked of the server for every context."""


class Loop(NamedTuple):
    """Where a loop keeps its things."""

    root: Path

    @property
    def bundles(self) -> Path:
        """The bundle root that the server follows."""
        return self.root / "bundles"

    @property
    def log(self) -> Path:
        """The feedback log."""
        return self.root / "feedback.db"

    def run(self, number: int) -> Path:
        """The run directory of a round."""
        return self.root / f"run-{number}"


def stage(module: str, *arguments: object, accepted: tuple[int, ...] = (0,)) -> tuple[int, dict[str, Any]]:
    """Run `python -m module`; give its exit code and the JSON that it printed last.

    Raises:
        UsageError: it failed; the message is the command and its own last line.
    """
    command = [sys.executable, "-m", module, *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in accepted:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise UsageError(f"{module} {arguments[0]} ended with {done.returncode}: {last.removeprefix('error: ')}")
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


@contextmanager
def live_server(loop: Loop) -> Iterator[str]:
    """A server of the loop's bundles that records into its log; its address."""
    command = [sys.executable, "-m", "serving", "serve", str(loop.bundles), "--port", "0", "--json"]
    command += ["--feedback-log", f"sqlite:///{loop.log}"]
    with (loop.root / "server.log").open("ab") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise UsageError(f"the server did not start: see {loop.root / 'server.log'}")
        yield json.loads(line)["address"]
    finally:
        process.terminate()
        process.wait()


def wait_for_version(users: SimulatedUsers, version: int) -> None:
    """Wait until the server answers with a version.

    Raises:
        UsageError: it does not within SWITCH_SECONDS.
    """
    end = time.monotonic() + SWITCH_SECONDS
    while users.model_version() != version:
        if time.monotonic() > end:
            raise UsageError(f"the server did not switch to version {version} within {SWITCH_SECONDS:g} s")
        time.sleep(0.05)
