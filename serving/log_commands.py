"""`python -m serving log`: what a feedback log holds, and its export to Parquet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, Field
from pydantic_settings import CliPositionalArg, CliSubCommand

from esr_trainer.command_line import Command, Options, show


class ShowLog(Command):
    """Count a feedback log's records by model version."""

    log: CliPositionalArg[str]
    """Database URL, or path of an SQLite or Parquet file."""

    def run(self) -> Mapping[str, Any]:
        """Count, and print the table."""
        from rich.table import Table

        from esr_trainer.feedback_log import summary

        counts = summary(self.log)
        records = sum(count.records for count in counts)
        first = min((count.first for count in counts), default=None)
        last = max((count.last for count in counts), default=None)
        span = f", from {first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S} UTC" if first and last else ""
        table = Table("model", "version", "records", "sampled", "first", "last", title=f"{records:,} records{span}")
        for count in counts:
            times = (f"{time:%Y-%m-%d %H:%M:%S}" for time in (count.first, count.last))
            table.add_row(count.model_id, str(count.model_version), f"{count.records:,}", f"{count.sampled:,}", *times)
        show(table)
        versions = [
            {**count._asdict(), "first": count.first.isoformat(), "last": count.last.isoformat()} for count in counts
        ]
        return {
            "records": records,
            "first": first and first.isoformat(),
            "last": last and last.isoformat(),
            "versions": versions,
        }


class ExportLog(Command):
    """Write a feedback log to a Parquet file, which is there whole or not at all."""

    log: CliPositionalArg[str]
    """Database URL, or path of an SQLite file."""
    to: Path
    """The Parquet file; it must not be there yet."""
    since: AwareDatetime | None = Field(default=None)
    """Earliest time, with its zone, such as 2026-01-31T00:00:00Z."""

    def run(self) -> Mapping[str, Any]:
        """Export."""
        from esr_trainer.feedback_parquet import export

        records = export(self.log, self.to, self.since)
        print(f"{records:,} records: {self.to}")
        return {"records": records, "to": str(self.to)}


class Log(Options):
    """Look into a feedback log, or export it."""

    show: CliSubCommand[ShowLog]
    """Count the records by model version."""
    export: CliSubCommand[ExportLog]
    """Write the records to a Parquet file."""

    def cli_cmd(self) -> None:
        """Run the subcommand."""
        from pydantic_settings import CliApp

        CliApp.run_subcommand(self)
