"""`python -m serving retrieve`, `health` and `versions`: ask a running server."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveFloat
from pydantic_settings import CliPositionalArg, CliSubCommand, CliToggleFlag

from esr_trainer.command_line import Command, Options, show
from serving.client import Connection

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_ADMIN_ADDRESS = "127.0.0.1:50052"


class ClientCommand(Command):
    """A command that calls a server."""

    address: str = DEFAULT_ADDRESS
    """host:port of the server."""
    tls_ca: Path | None = None
    """PEM file of the authorities that the server's certificate comes from; turns TLS on."""
    token_file: Path | None = None
    """File with the token that the server wants."""
    seconds: PositiveFloat = Field(default=5.0, le=3600)
    """Deadline of the call."""

    def connection(self) -> Connection:
        """How to reach the server."""
        return Connection(self.address, self.seconds, self.tls_ca, self.token_file)


class Retrieve(ClientCommand):
    """Ask a server for the candidates of one context."""

    context_id: str
    """The context's own id in the training data."""
    num_candidates: int = Field(default=10, alias="k", ge=0, lt=1 << 32)
    """Number of candidates."""
    num_slots: int = Field(default=0, ge=0, lt=1 << 32)
    """Number of slots that the served late-stage ranker fills; 0: no slate."""
    exclude: tuple[str, ...] = ()
    """Items that must not come back."""
    seed: int | None = Field(default=None, ge=0, lt=1 << 64)
    """Draw the candidates from the policy with this seed, and print their propensities."""

    def run(self) -> Mapping[str, Any]:
        """Ask, and print the candidates."""
        from rich.table import Table

        from serving.client import retrieve_response
        from serving.shown_answer import ShownAnswer

        response = retrieve_response(
            self.connection(), self.context_id, self.num_candidates, self.num_slots, self.exclude, self.seed
        )
        answer = ShownAnswer.of(response)
        slot_of = {position: slot for slot, position in enumerate(answer.slate, start=1)}
        propensities = answer.inclusion_propensities or [None] * len(answer.item_ids)
        table = Table(
            *("position", "item", "logit", "expert", "propensity", "slot"),
            title=f"{answer.model_id}, version {answer.model_version}",
        )
        columns = zip(answer.item_ids, answer.scores, answer.experts, strict=True)
        for position, (item, score, expert) in enumerate(columns):
            chance = propensities[position]
            slot = str(slot_of.get(position, ""))
            shown = "" if chance is None else f"{chance:.4f}"
            table.add_row(str(position + 1), item, f"{score:.4f}", str(expert), shown, slot)
        show(table)
        return answer.model_dump()


class Health(ClientCommand):
    """Ask a server whether it serves; exit code 0 if so."""

    service: str = ""
    """Name in grpc.health.v1, such as esr.v1.RetrievalService; empty: the server."""

    def run(self) -> Mapping[str, Any]:
        """Ask once."""
        from serving.client import check_serving

        check_serving(self.connection(), self.service)
        print("SERVING")
        return {"status": "SERVING"}


class AdminCommand(ClientCommand):
    """A command that calls a server's admin port."""

    address: str = DEFAULT_ADMIN_ADDRESS
    """host:port of the server's admin service (`serve --admin-port`)."""
    seconds: PositiveFloat = Field(default=600.0, le=3600)
    """Deadline of the call; loading takes as long as the bundle is large."""

    def print_version(self, version: Any) -> Mapping[str, Any]:
        """Say which version it is now about."""
        from serving.client import version_facts

        facts = version_facts(version)
        print(f"version {facts['version']} ({facts['model_id']}): {facts['state']}")
        return facts


class ListVersions(AdminCommand):
    """List the versions under the bundle root and what the server knows of them."""

    def run(self) -> Mapping[str, Any]:
        """Ask, and print the table."""
        from rich.table import Table

        from serving.client import list_versions, version_facts

        answer = list_versions(self.connection())
        follows = "follows the highest" if answer.follows_latest else "stays on it"
        table = Table(
            *("version", "state", "model", "problem"),
            title=f"active {answer.active_version}, before it {answer.previous_version or 'none'}; {follows}",
        )
        versions = [version_facts(version) for version in answer.versions]
        for facts in versions:
            table.add_row(*map(str, facts.values()))
        show(table)
        return {
            "active_version": answer.active_version,
            "previous_version": answer.previous_version,
            "follows_latest": answer.follows_latest,
            "versions": versions,
        }


class LoadVersion(AdminCommand):
    """Verify, load and warm a version beside the active one, without switching."""

    version: CliPositionalArg[NonNegativeInt]
    """The bundle's integer version."""

    def run(self) -> Mapping[str, Any]:
        """Load."""
        from serving.client import load_version

        return self.print_version(load_version(self.connection(), self.version))


class ActivateVersion(AdminCommand):
    """Switch to a version and stay on it; requests in flight finish on the one that they began with."""

    version: CliPositionalArg[NonNegativeInt]
    """The bundle's integer version; 0: the highest."""
    follow_latest: CliToggleFlag[bool] = False
    """Switch to higher versions as they are published from now on."""

    def run(self) -> Mapping[str, Any]:
        """Switch."""
        from serving.client import activate_version

        return self.print_version(activate_version(self.connection(), self.version, self.follow_latest))


class RollBack(AdminCommand):
    """Switch back at once to the version that was active before, and stay on it."""

    def run(self) -> Mapping[str, Any]:
        """Switch back."""
        from serving.client import roll_back

        return self.print_version(roll_back(self.connection()))


class VersionsCommand(Options):
    """List, load, activate or roll back the versions of a running server."""

    list: CliSubCommand[ListVersions]
    """List the versions."""
    load: CliSubCommand[LoadVersion]
    """Load one without switching."""
    activate: CliSubCommand[ActivateVersion]
    """Switch to one."""
    roll_back: CliSubCommand[RollBack]
    """Switch back."""

    def cli_cmd(self) -> None:
        """Run the subcommand."""
        from pydantic_settings import CliApp

        CliApp.run_subcommand(self)
