"""`python -m serving serve`: options, notes for people, and the first line of JSON for programs."""

from pathlib import Path

from pydantic_settings import CliPositionalArg

from esr_trainer.command_line import Command, UsageError, note
from serving.errors import BundleCorruptError, BundleUnusableError
from serving.server_options import ServerOptions


class Serve(Command, ServerOptions):
    """Answer esr.v1.RetrievalService over gRPC with the versions of a bundle root, until SIGTERM or Ctrl-C."""

    root: CliPositionalArg[Path]
    """Bundle root; the server follows its highest version and switches without losing a request."""

    def run(self) -> None:
        """Serve; the JSON is printed as soon as requests are answered."""
        from serving.security import check_exposure
        from serving.server import Started, run, serve
        from serving.workers import supervise

        def ready(started: Started) -> None:
            what = f"{started.model_id}, version {started.version}," if started.version else "no bundle yet,"
            note(f"serving {what} on {started.address}; Ctrl-C drains and stops")
            if started.version:
                example = f"--context-id {started.context_id} -k 10 --address {started.address}"
                note(f"next: python -m serving retrieve {example}")
            if self.as_json:
                self.print_json({name: value for name, value in started._asdict().items() if name != "context_id"})

        options = ServerOptions.model_validate(self.model_dump(include=set(ServerOptions.model_fields)))
        if warning := check_exposure(options):
            note(f"warning: {warning}")
        try:
            if options.workers == 1:
                run(serve(options, ready))
            else:
                run(supervise(options, ready))
        except (BundleUnusableError, BundleCorruptError) as error:
            raise UsageError(f"bundles ({self.root}): {error}") from error
