"""The closed loop: serve with sampling, record feedback, learn from the log, judge, publish; round after round.

Each stage is the command that a user would run, in a process of its own: what the rounds reach is what the system
reaches, not what its parts do in one process. A checkpoint is judged before it goes live: one that is not promoted is
not published, and the next round is served by the old one.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from esr_trainer.checkpoint import Checkpoint
from esr_trainer.command_line import UsageError
from esr_trainer.environments import open_world
from esr_trainer.system import ranker_of, system_of
from offline_eval.procedures.simulated_users import SimulatedUsers
from offline_eval.verdict import EXIT_CODES, Decision

SWITCH_SECONDS = 60.0
"""How long a server may take to switch to a new version."""


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
    """What a loop does, and where it keeps its things."""

    root: Path
    world: Sequence[str]
    """Options of esr_trainer that name the world and the system."""
    logging_steps: int
    """Gradient steps of the logging policy, which learns online."""
    learning: Sequence[str]
    """Options of esr_trainer for what learns from the log."""
    rounds: int
    visits: int
    """Of a round."""
    seed: int

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


def closed_loop(loop: Loop, doing: Callable[[str], None] = lambda what: None) -> Iterator[LoopRound]:
    """Go round; each round as soon as it has ended, the logging policy first.

    Args:
        loop: what to do.
        doing: told what is done next.

    Raises:
        UsageError: a stage failed; the message is its own.
    """
    doing("logging policy")
    stage("esr_trainer", *loop.world, "--steps", loop.logging_steps, "--seed", loop.seed, "--out", loop.run(0))
    stage("serving", "export", loop.run(0), "--out", loop.bundles)
    with live_server(loop) as address, users_of(loop, address) as users:
        live = loop.run(0)
        yield LoopRound(0, 0, None, None, "the logging policy", users.model_version(), users.policy_value())
        for number in range(1, loop.rounds + 1):
            doing(f"round {number}: visits")
            visits = users.visit(loop.visits)
            doing(f"round {number}: learning from {users.visits:,} visits")
            run = loop.run(number)
            stage("esr_trainer", *loop.world, "--from-log", loop.log, *loop.learning, "--seed", loop.seed, "--out", run)
            doing(f"round {number}: the verdict")
            decision, because = verdict_on(run, live)
            if decision == "promote":
                _, published = stage("serving", "export", run, "--out", loop.bundles)
                wait_for_version(users, published["version"])
                live = run
            yield LoopRound(
                number=number,
                visits=users.visits,
                mean_reward=visits.mean_reward,
                decision=decision,
                because=because,
                version=users.model_version(),
                policy_value=users.policy_value(),
            )


def verdict_on(candidate: Path, live: Path) -> tuple[Decision, str]:
    """What `compare` says of a checkpoint against the one that serves, and why."""
    _, found = stage("offline_eval", "compare", candidate, "--baseline", live, accepted=tuple(EXIT_CODES.values()))
    verdict = next(judged["verdict"] for judged in found["judged"] if judged["verdict"])
    return verdict["decision"], verdict["because"]


def stage(module: str, *arguments: object, accepted: tuple[int, ...] = (0,)) -> tuple[int, dict[str, Any]]:
    """Run `python -m module`; give its exit code and the JSON that it printed last.

    Raises:
        UsageError: it failed; the message is its own last line.
    """
    command = [sys.executable, "-m", module, *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in accepted:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise UsageError(f"python -m {module} ended with {done.returncode}: {last.removeprefix('error: ')}")
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


@contextmanager
def users_of(loop: Loop, address: str) -> Iterator[SimulatedUsers]:
    """The users of the world that the logging policy learned in."""
    config = Checkpoint(loop.run(0)).config
    world = open_world(config.environment, config.data, config.world_seed, config.contexts, config.items)
    users = SimulatedUsers(world, system_of(config, world, ranker_of(config, world)), address, loop.seed)
    try:
        yield users
    finally:
        users.close()


@contextmanager
def live_server(loop: Loop) -> Iterator[str]:
    """A server of the loop's bundles that records into its log; its address.

    Raises:
        UsageError: it does not start; why is in server.log.
    """
    command = [sys.executable, "-m", "serving", "serve", str(loop.bundles), "--port", "0", "--json"]
    command += ["--feedback-log", f"sqlite:///{loop.log.resolve()}"]
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
