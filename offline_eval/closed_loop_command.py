"""`python -m offline_eval closed-loop`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveInt

from esr_trainer.command_line import Command, UsageError, show
from esr_trainer.config import Seed

if TYPE_CHECKING:
    from offline_eval.procedures.closed_loop import Loop


class ClosedLoop(Command):
    """Go round: serve with sampling, record what users do, learn from the log, judge, publish, serve on.

    Every stage is the command that you would run, in a process of its own, against one live server: esr_trainer,
    serving export, serving serve, offline_eval compare. Simulated users visit over gRPC; a checkpoint goes live only
    once it is promoted. Prints the policy value of what is served, round after round.
    """

    out: Path = Path("runs/closed-loop")
    """Folder for the runs, the bundles, the feedback log and the server's messages; must not be there yet."""
    rounds: PositiveInt = 3
    """Rounds after the logging policy."""
    visits: PositiveInt = 20_000
    """Users who come in a round; each is shown what the served policy draws."""
    estimator: Literal["ce", "ips", "two-stage-ips", "topk-ips", "ca-swr-ips", "ca-poisson-ips"] = "ca-poisson-ips"
    """What learns from the log."""
    steps: PositiveInt = 2000
    """Gradient steps from the log, each round anew on everything that was logged."""
    logging_steps: PositiveInt = 30
    """Gradient steps of the logging policy, which learns online: few, so that there is something to learn."""
    data: Path | None = None
    """The users' world, as of esr_trainer; default a simulator of KuaiRec's shape."""
    contexts: PositiveInt = 200
    """Contexts of a simulated world."""
    items: PositiveInt = 500
    """Items of a simulated world."""
    candidates: PositiveInt = 20
    """K."""
    experts: PositiveInt = 1
    """M."""
    lsr: Literal["optimal", "noisy", "uniform", "anti"] = "noisy"
    """Late-stage ranker, which shows one of the candidates."""
    seed: Seed = 0
    """Of everything that is drawn."""

    def run(self) -> Mapping[str, Any]:
        """Go round and print a table."""
        import json

        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        from offline_eval.grids import Grid, rich_table
        from offline_eval.procedures.closed_loop import closed_loop
        from offline_eval.provenance import provenance

        if self.out.exists():
            raise UsageError(f"out ({self.out}) is there already; name a new folder")
        self.out.mkdir(parents=True)
        found = []
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("", total=None)
            for one in closed_loop(self.loop(), lambda doing: progress.update(task, description=doing)):
                found.append(one)
        head = ("round", "visits", "reward per visit", "verdict", "version", "policy value served")
        rows = [
            (
                str(one.number),
                f"{one.visits:,}",
                "" if one.mean_reward is None else f"{one.mean_reward:.4f}",
                one.decision or "",
                str(one.version),
                f"{one.policy_value:.4f}",
            )
            for one in found
        ]
        show(rich_table(Grid("the closed loop", head, rows)))
        result = {**provenance("python -m offline_eval closed-loop"), "rounds": [one._asdict() for one in found]}
        (self.out / "closed-loop.json").write_text(json.dumps(result, indent=1))
        print(f"result: {self.out / 'closed-loop.json'}")
        return result

    def loop(self) -> "Loop":
        """What was asked."""
        from offline_eval.procedures.closed_loop import Loop

        world = ["--lsr", self.lsr, "--candidates", str(self.candidates), "--experts", str(self.experts)]
        if self.data:
            world += ["--data", str(self.data)]
        else:
            world += ["--environment", "kuairec", "--contexts", str(self.contexts), "--items", str(self.items)]
        learning = ["--estimator", self.estimator, "--steps", str(self.steps)]
        return Loop(self.out, world, self.logging_steps, learning, self.rounds, self.visits, self.seed)
