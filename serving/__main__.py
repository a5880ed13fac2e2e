"""`python -m serving`: publish bundles, serve them, ask a server, look into its log, measure it."""

import sys

from pydantic_settings import CliApp, CliSubCommand

from esr_trainer.command_line import Options, UsageError, main
from serving.benchmark_commands import BenchIndex, Loadtest, StandIn
from serving.client_commands import Health, Retrieve, VersionsCommand
from serving.errors import ServingError
from serving.log_commands import Log
from serving.publish_commands import Export, Items
from serving.record_command import Record
from serving.serve_command import Serve


class Serving(Options):
    """Export an early-stage ranker as a bundle, serve it over gRPC, and ask it for candidates."""

    export: CliSubCommand[Export]
    """Publish a run's last checkpoint as a bundle."""
    items: CliSubCommand[Items]
    """Add and remove items: a new version with the same towers."""
    serve: CliSubCommand[Serve]
    """Answer over gRPC with the highest version of a bundle root."""
    retrieve: CliSubCommand[Retrieve]
    """Ask a server for the candidates of one context."""
    record: CliSubCommand[Record]
    """Send an answer back with what it earned."""
    log: CliSubCommand[Log]
    """Look into a feedback log, or export it."""
    health: CliSubCommand[Health]
    """Ask a server whether it serves."""
    versions: CliSubCommand[VersionsCommand]
    """List, load, activate or roll back the versions of a running server."""
    loadtest: CliSubCommand[Loadtest]
    """Start a server and measure what it bears."""
    stand_in: CliSubCommand[StandIn]
    """Publish a bundle of stand-in embeddings, to measure."""
    bench_index: CliSubCommand[BenchIndex]
    """Measure the kinds of index."""

    def cli_cmd(self) -> None:
        """Run the subcommand."""
        CliApp.run_subcommand(self)


if __name__ == "__main__":
    sys.exit(main(Serving, "python -m serving", refusals=(UsageError, ServingError)))
