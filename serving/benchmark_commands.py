"""`python -m serving loadtest` and `bench-index`: what a server bears, what each kind of index costs and finds."""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from pydantic_settings import CliPositionalArg

from esr_trainer.command_line import Command, UsageError, note, show
from serving.bundle import latest_version, load_bundle
from serving.loadtest import Measured, Method, measure, methods


class Loadtest(Command):
    """Start a server on a bundle root and measure it beside a no-op RPC of the same reply size.

    First the most requests per second of each RPC in a closed loop, then latencies at half of that in an open loop.
    Client and server share this machine.
    """

    root: CliPositionalArg[Path]
    """Bundle root; the highest version is served."""
    num_candidates: PositiveInt = 100
    """K of every request."""
    batch: PositiveInt = 64
    """Requests of a BatchRetrieve."""
    callers: PositiveInt = 16
    """Callers of a closed loop."""
    seconds: PositiveFloat = 5.0
    """Of each measurement."""
    repeats: PositiveInt = 3
    """How often the closed loops are measured, in turn; medians count, so that a busy moment is nobody's fault."""
    workers: PositiveInt = 1
    """Processes of the server."""
    out: Path | None = None
    """JSON file for the results."""

    def run(self) -> Mapping[str, Any]:
        """Measure, print, write."""
        import uvloop

        bundle = load_bundle(self.root / str(version := latest_version(self.root)), version)
        manifest = bundle.manifest
        num_candidates = min(self.num_candidates, manifest.num_items)
        of = methods(bundle.context_ids, num_candidates, self.batch, bundle.index.is_exact)
        with server_process(self.root, num_candidates, self.workers) as server:
            rows = uvloop.run(self.measured(server, of))
        print_rows(rows, f"{manifest.num_items:,} items x {manifest.embedding_dim}, M = {manifest.num_experts}")
        result = {
            "command": f"python -m serving {' '.join(sys.argv[1:])}",
            "machine": f"{platform.processor() or platform.machine()} x {os.cpu_count()}",
            "num_items": manifest.num_items,
            "embedding_dim": manifest.embedding_dim,
            "num_experts": manifest.num_experts,
            "index": manifest.index,
            "num_candidates": num_candidates,
            "rows": [row._asdict() for row in rows],
        }
        if self.out:
            self.out.write_text(json.dumps(result, indent=1) + "\n")
        return result

    async def measured(self, server: "Server", of: Sequence[Method]) -> list[Measured]:
        """Every method in turn: closed loops, then open loops at half of what they reached."""
        closed: dict[str, list[Measured]] = {method.title: [] for method in of}
        for repeat in range(self.repeats):
            for method in of:
                note(f"closed loop {repeat + 1} of {self.repeats}: {method.title}")
                callers = self.callers if method.users == 1 else 2
                row = await measure(server.address, method, "closed", callers, self.seconds, server.pids)
                closed[method.title].append(row)
        rows = [median(runs) for runs in closed.values()]
        for method, row in zip(of, list(rows), strict=True):
            rate = row.requests_per_second / 2
            note(f"open loop at {rate:.0f} requests/s: {method.title}")
            rows.append(await measure(server.address, method, "open", rate, self.seconds, server.pids))
        return rows


class Server(NamedTuple):
    """A running server."""

    address: str
    pids: list[int]


@contextmanager
def server_process(root: Path, num_candidates: int, workers: int) -> Iterator[Server]:
    """Start `python -m serving serve` on a free port with the no-op RPC; stop it at the end."""
    command = [sys.executable, "-m", "serving", "serve", str(root), "--port", "0", "--json"]
    command += ["--no-op", str(num_candidates), "--workers", str(workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (
        tempfile.TemporaryFile("w+") as log,  # its hints on what to do next are for others
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                process.wait()
                log.seek(0)
                raise UsageError(f"the server did not start: {log.read().strip().removeprefix('error: ')}")
            ready = json.loads(line)
            yield Server(ready["address"], ready["worker_pids"] or [process.pid])
        finally:
            process.terminate()


def median(runs: Sequence[Measured]) -> Measured:
    """The run in the middle by requests per second."""
    return sorted(runs, key=lambda run: run.requests_per_second)[len(runs) // 2]


def print_rows(rows: Sequence[Measured], title: str) -> None:
    """A table for people."""
    from rich.table import Table

    table = Table(
        "RPC",
        "loop",
        "load",
        "req/s",
        "of no-op",
        "users/s",
        "per core s",
        "p50",
        "p95",
        "p99 ms",
        "errors",
        title=title,
    )
    no_op = next(row for row in rows if row.method == "no-op")
    for row in rows:
        share = f"{row.requests_per_second / no_op.requests_per_second:.0%}" if row.loop == "closed" else ""
        table.add_row(
            row.method,
            row.loop,
            *(f"{cell:,.0f}" for cell in (row.load, row.requests_per_second)),
            share,
            *(f"{cell:,.0f}" for cell in (row.users_per_second, row.users_per_core_second)),
            *(f"{cell:.2f}" for cell in (row.p50, row.p95, row.p99)),
            str(row.errors),
        )
    show(table)


class StandIn(Command):
    """Publish a bundle of stand-in embeddings, 64 dimensions, to measure a catalogue that there is no model of yet."""

    root: CliPositionalArg[Path]
    """Bundle root."""
    items: PositiveInt = 1_000_000
    """N; a million takes two minutes and 2 GB."""
    num_candidates: PositiveInt = 100
    """K."""
    index: Literal["auto", "flat", "ivf", "hnsw"] = "auto"
    """Kind of index, as for export."""
    seed: NonNegativeInt = 0
    """Of the embeddings."""

    def run(self) -> Mapping[str, Any]:
        """Publish."""
        from serving.publish_commands import published
        from serving.stand_in import publish_stand_in

        return published(publish_stand_in(self.root, self.items, self.num_candidates, self.index, self.seed))


class BenchIndex(Command):
    """Measure what each kind of index costs and finds on stand-in embeddings or your own, k = 100, one thread."""

    sizes: tuple[PositiveInt, ...] = (10_000, 100_000, 1_000_000)
    """Numbers of items of the stand-in; a million takes minutes and 2 GB."""
    bundle: Path | None = None
    """Bundle root whose items are searched by its own contexts, instead of a stand-in: the highest version."""
    kinds: tuple[Literal["flat", "ivf", "hnsw"], ...] = ("flat", "ivf", "hnsw")
    """Kinds of index."""
    seed: NonNegativeInt = 0
    """Of the embeddings and queries."""
    out: Path | None = None
    """JSON file for the results; rows of other sizes and kinds that it holds stay."""

    def run(self) -> Mapping[str, Any]:
        """Measure."""
        from rich.table import Table

        from serving.bench_index import NUM_RETRIEVED, Measured, bench, machine, of_bundle, stand_in, write_rows

        subjects = (
            (of_bundle(root, self.seed) for root in [self.bundle])
            if self.bundle
            else (stand_in(size, self.seed) for size in self.sizes)
        )
        name, measured = bench(subjects, self.kinds)
        table = Table(*(name.replace("_", " ") for name in Measured._fields))
        for row in measured:
            table.add_row(*map(str, row))
        show(table)
        result = {"embeddings": name, "seed": self.seed, "k": NUM_RETRIEVED, "machine": machine()}
        if self.out:
            write_rows(self.out, result, measured)
        return {**result, "rows": [row._asdict() for row in measured]}
