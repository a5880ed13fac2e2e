"""`python -m serving`: export a run as a bundle, serve it, ask for candidates."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveFloat
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
    triton: Path | None = None
    """Also write the bundle as a Triton model repository: a directory that is not there yet."""

    def run(self) -> Mapping[str, Any]:
        """Export."""
        try:
            from serving.export import check_free, export, export_for_triton
        except ModuleNotFoundError as error:
            raise UsageError(
                f"export needs the training packages ({error.name} is missing): install '.[train]'"
            ) from error
        if self.triton:
            check_free(self.triton)
        directory = export(self.run_directory, self.out)
        print(f"bundle: {directory} (torch, ONNX Runtime and FAISS give the same candidates)")
        result = {"bundle": str(directory), "version": int(directory.name)}
        if self.triton:
            export_for_triton(directory, self.triton)
            print(f"Triton model repository: {self.triton} (Triton's Python needs this package for the model esr)")
            result["triton"] = str(self.triton)
        print(f"next: python -m serving serve {self.out}")
        return result


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


class Health(Command):
    """Ask a server whether it serves; exit code 0 if so."""

    address: str = DEFAULT_ADDRESS
    """host:port of the server."""
    service: str = ""
    """Name in grpc.health.v1, such as esr.v1.RetrievalService; empty: the server."""
    seconds: PositiveFloat = Field(default=2.0, le=3600)
    """Deadline of the call."""

    def run(self) -> Mapping[str, Any]:
        """Ask once."""
        from serving.health_probe import check_serving

        check_serving(self.address, self.service, self.seconds)
        print("SERVING")
        return {"status": "SERVING"}


class Serving(Options):
    """Export an early-stage ranker as a bundle, serve it over gRPC, and ask it for candidates."""

    export: CliSubCommand[Export]
    """Publish a run's last checkpoint as a bundle."""
    serve: CliSubCommand[Serve]
    """Answer over gRPC with the highest version of a bundle root."""
    retrieve: CliSubCommand[Retrieve]
    """Ask a server for the candidates of one context."""
    health: CliSubCommand[Health]
    """Ask a server whether it serves."""

    def cli_cmd(self) -> None:
        """Run the subcommand."""
        from pydantic_settings import CliApp

        CliApp.run_subcommand(self)


if __name__ == "__main__":
    sys.exit(main(Serving, "python -m serving", refusals=(UsageError, ServingError)))
