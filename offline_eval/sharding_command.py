"""`python -m offline_eval sharding`: what a run under torchrun is worth beside one process, and what its steps cost."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from pydantic import Field, PositiveInt
from rich.table import Table

from esr_trainer.command_line import Command, UsageError, note, show


class Sharding(Command):
    """Train the same seeds in one process and under torchrun on this machine, and time a step of each sharding.

    The draws differ, so policy values agree within the noise of seeds. Prints both tables; writes sharding.json.
    """

    ranks: Annotated[int, Field(ge=2)] = 2
    """Processes under torchrun."""
    seeds: PositiveInt = 3
    """Seeds 0, 1, ... of each."""
    steps: PositiveInt = 1000
    """Steps of a run on the synthetic world, K = 10."""
    sizes: tuple[PositiveInt, ...] = (1_000, 20_000, 1_000_000)
    """Numbers of items whose step is timed, 200 contexts, K = 100: of a sample, up to 50,000 of all items too."""
    repeats: PositiveInt = 30
    """Timed steps of each row."""
    out: Path = Path("offline_eval/results")
    """Directory of the result."""

    def run(self) -> Mapping[str, Any]:
        """Train, time, print, write."""
        from offline_eval.provenance import provenance, write_json

        costs = self.costs()
        values = [self.values(seed) for seed in range(self.seeds)]
        table = Table("seed", "one process", f"{self.ranks} under torchrun", title="policy value")
        for value in values:
            table.add_row(str(value["seed"]), f"{value['one_process']:.4f}", f"{value['torchrun']:.4f}")
        show(table)
        if costs:
            show(table_of(costs))
        command = (
            f"python -m offline_eval sharding --ranks {self.ranks} --seeds {self.seeds} --steps {self.steps} "
            f"--sizes {','.join(map(str, self.sizes))} --repeats {self.repeats}"
        )
        result = {**provenance(command), "values": values, "rows": costs}
        write_json(self.out / "sharding.json", result)
        print(f"written: {self.out / 'sharding.json'}")
        return result

    def values(self, seed: int) -> dict[str, Any]:
        """Both policy values of a seed."""
        note(f"sharding: seed {seed}")
        options = ["--environment", "synthetic", "--candidates", "10", "--steps", str(self.steps), "--seed", str(seed)]
        found: dict[str, Any] = {"seed": seed}
        for name, launch in (("one_process", []), ("torchrun", self.launch)):
            with TemporaryDirectory() as folder:
                said = said_by([*launch, "-m", "esr_trainer", *options, "--json", "--out", f"{folder}/run"])
            found[name] = said["policy_value"]
        return found

    def costs(self) -> list[dict[str, Any]]:
        """A step's costs in one process, and of each sharding under torchrun."""
        note(f"sharding: steps of {', '.join(f'{size:,}' for size in self.sizes)} items")
        timing = ["-m", "offline_eval.reproduce.sharded_steps", json.dumps(self.sizes), str(self.repeats)]
        return [*said_by(timing), *said_by([*self.launch, *timing])]

    @property
    def launch(self) -> list[str]:
        """torchrun, on a port of its own."""
        return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.ranks}"]


def said_by(arguments: Sequence[str]) -> Any:
    """The JSON on the last line that a Python command prints.

    Raises:
        UsageError: it failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise UsageError(f"python {' '.join(arguments)} failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table_of(costs: Sequence[Mapping[str, Any]]) -> Table:
    """The costs, for people."""
    table = Table(
        *("items", "estimator", "catalogue", "processes", "sharding", "ms", "own ms", "kB sent", "kB measured"),
        title="a training step",
    )
    for row in costs:
        times = [f"{row[name]:.1f}" for name in ("milliseconds", "processor_milliseconds")]
        sent = [f"{row[name] / 1e3:.1f}" for name in ("bytes_computed", "bytes_measured")]
        what = (row["estimator"], row["catalogue"], str(row["processes"]), row["sharding"])
        table.add_row(f"{row['items']:,}", *what, *times, *sent)
    return table
