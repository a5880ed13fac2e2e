"""`python -m serving`: export a run as a bundle, serve it, ask for candidates."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic_settings import CliPositionalArg, CliSubCommand

from esr_trainer.command_line import Command, Options, UsageError, main, note, show
from serving.errors import BundleCorruptError, BundleUnusableError, ServingError

DEFAULT_ADDRESS = "127.0.0.1:50051"


class Export(Command):
    """Publish a run's last checkpoint as the next version, once torch, ONNX Runtime and FAISS agree."""

    run_directory: CliPositionalArg[Path] = Field(alias="run")
    """Run or checkpoint directory of esr_trainer."""
    out: Path = Path("bundles")
    """Bundle root; the bundle is written whole as <root>/<next integer>."""
    index: Literal["auto", "flat", "ivf", "hnsw"] = "auto"
    """Kind of index: flat is exact; ivf (clusters) and hnsw (a graph) are faster from some 50,000 items on, and take
    minutes to build for a million; auto is flat up to 100,000 items, then ivf."""
    min_recall: float = Field(default=0.95, ge=0, le=1)
    """The least share of the exact candidates, on the golden queries, with which a bundle is published."""

    def run(self) -> Mapping[str, Any]:
        """Export."""
        try:
            from serving.export import export
        except ModuleNotFoundError as error:
            raise needs_training_packages("export", error) from error
        directory = export(self.run_directory, self.out, self.index, self.min_recall)
        return published(directory)


class Items(Command):
    """Publish a version with items added and removed, its towers as they are, as the next version."""

    root: CliPositionalArg[Path]
    """Bundle root."""
    add: Path | None = None
    """CSV or Parquet of new items: ids in the first column, then a column of each feature of the item tower; an unknown
    value counts as none."""
    remove: Path | None = None
    """Text with the ids to remove, one a line."""
    version: PositiveInt | None = None
    """The version to start from; the highest by default."""
    min_recall: float = Field(default=0.95, ge=0, le=1)
    """As for export."""

    def run(self) -> Mapping[str, Any]:
        """Publish."""
        try:
            from serving.items import with_items
        except ModuleNotFoundError as error:
            raise needs_training_packages("items", error) from error
        return published(with_items(self.root, self.add, self.remove, self.version, self.min_recall))


class BenchIndex(Command):
    """Measure what each kind of index costs and finds on stand-in embeddings, k = 100, one thread."""

    sizes: tuple[PositiveInt, ...] = (10_000, 100_000, 1_000_000)
    """Numbers of items; a million takes minutes and 2 GB."""
    kinds: tuple[Literal["flat", "ivf", "hnsw"], ...] = ("flat", "ivf", "hnsw")
    """Kinds of index."""
    seed: NonNegativeInt = 0
    """Of the embeddings and queries."""
    out: Path | None = None
    """JSON file for the results; rows of other sizes and kinds that it holds stay."""

    def run(self) -> Mapping[str, Any]:
        """Measure."""
        from rich.table import Table

        from serving.bench_index import NUM_RETRIEVED, STAND_IN, Measured, bench, machine, write_rows

        measured = bench(self.sizes, self.kinds, self.seed)
        table = Table(*(name.replace("_", " ") for name in Measured._fields))
        for row in measured:
            table.add_row(*map(str, row))
        show(table)
        result = {"embeddings": STAND_IN, "seed": self.seed, "k": NUM_RETRIEVED, "machine": machine()}
        if self.out:
            write_rows(self.out, result, measured)
        return {**result, "rows": [row._asdict() for row in measured]}


def needs_training_packages(command: str, error: ModuleNotFoundError) -> UsageError:
    """What the base install lacks."""
    return UsageError(f"{command} needs the training packages ({error.name} is missing): install '.[train]'")


def published(directory: Path) -> Mapping[str, Any]:
    """Say which bundle is there now."""
    from serving.bundle import read_manifest

    manifest = read_manifest(directory)
    found = (
        "torch, ONNX Runtime and FAISS give the same candidates"
        if manifest.index == "flat"
        else f"{manifest.index} index, recall@{manifest.num_candidates} {manifest.recall:.4f} on the golden queries"
    )
    print(f"bundle: {directory} ({found})")
    print(f"next: python -m serving serve {directory.parent}")
    return {
        "bundle": str(directory),
        "version": int(directory.name),
        "items": manifest.num_items,
        "index": manifest.index,
        "recall": manifest.recall,
    }


class Serve(Command):
    """Answer esr.v1.RetrievalService over gRPC with the highest version, with health checking and reflection."""

    root: CliPositionalArg[Path]
    """Bundle root."""
    host: str = "127.0.0.1"
    """Address to listen on; there is no authentication yet, so think before you open it."""
    port: NonNegativeInt = Field(default=50051, le=65535)
    """Port to listen on; 0 takes a free one."""

    def run(self) -> None:
        """Serve until SIGTERM or Ctrl-C; the JSON is printed as soon as requests are answered."""
        import asyncio

        from serving.retriever import Retriever
        from serving.server import serve

        def ready(retriever: Retriever, address: str) -> None:
            bundle = retriever.bundle
            model_id = bundle.manifest.model_id
            note(f"serving {model_id}, version {bundle.version}, on {address}; Ctrl-C drains and stops")
            example = f"--context-id {bundle.context_ids[0]} -k 10 --address {address}"
            note(f"next: python -m serving retrieve {example}")
            if self.as_json:
                self.print_json({"address": address, "model_id": model_id, "version": bundle.version})

        try:
            asyncio.run(serve(self.root, self.host, self.port, ready))
        except (BundleUnusableError, BundleCorruptError) as error:
            raise UsageError(f"bundles ({self.root}): {error}") from error


class Retrieve(Command):
    """Ask a server for the candidates of one context."""

    context_id: str
    """The context's own id in the training data."""
    num_candidates: int = Field(default=10, alias="k", ge=0, lt=1 << 32)
    """Number of candidates."""
    address: str = DEFAULT_ADDRESS
    """host:port of the server."""
    seconds: PositiveFloat = Field(default=5.0, le=3600)
    """Deadline of the call."""

    def run(self) -> Mapping[str, Any]:
        """Ask, and print the candidates."""
        from rich.table import Table

        from serving.client import retrieve

        candidates, model_id, version = retrieve(self.address, self.context_id, self.num_candidates, self.seconds)
        table = Table("position", "item", "logit", "expert", title=f"{model_id}, version {version}")
        for position, row in enumerate(zip(*candidates, strict=True), start=1):
            table.add_row(str(position), row[0], f"{row[1]:.4f}", str(row[2]))
        show(table)
        return {"model_id": model_id, "model_version": version, **candidates._asdict()}


class Serving(Options):
    """Export an early-stage ranker as a bundle, serve it over gRPC, and ask it for candidates."""

    export: CliSubCommand[Export]
    """Publish a run's last checkpoint as a bundle."""
    items: CliSubCommand[Items]
    """Add and remove items: a new version with the same towers."""
    bench_index: CliSubCommand[BenchIndex]
    """Measure the kinds of index."""
    serve: CliSubCommand[Serve]
    """Answer over gRPC with the highest version of a bundle root."""
    retrieve: CliSubCommand[Retrieve]
    """Ask a server for the candidates of one context."""

    def cli_cmd(self) -> None:
        """Run the subcommand."""
        from pydantic_settings import CliApp

        CliApp.run_subcommand(self)


if __name__ == "__main__":
    sys.exit(main(Serving, "python -m serving", refusals=(UsageError, ServingError)))
