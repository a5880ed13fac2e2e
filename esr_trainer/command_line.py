"""The command line of every stage: a frozen pydantic model gives options, help and checks.

Results go to stdout, progress and notes to stderr; an error is one line that quotes the value and the rule, with exit
code 2.
Nothing here imports torch, so `--help` answers at once and the server can use it.
"""

import argparse
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliSettingsSource,
    CliToggleFlag,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)
from rich.console import Console
from rich.table import Table


class UsageError(ValueError):
    """What the user asked for cannot be done; the message is one line that quotes the value and the rule."""


class Ended(Exception):
    """A command did its work and ends with an exit code of its own, which says what it found."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code


class Options(BaseModel):
    """Checked, immutable settings; every field's docstring is its help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    sections: ClassVar[Mapping[str, str]] = {}
    """The first option of each section of the help -> its title; empty: the help has none."""


class Command(Options):
    """A command whose fields are its options."""

    as_json: CliToggleFlag[bool] = Field(default=False, alias="json")
    """Print one JSON object as the last line of stdout."""

    def run(self) -> Mapping[str, Any] | None:
        """Do the work and print it for people; the value is what `--json` prints, None if it was already printed."""
        raise NotImplementedError

    def cli_cmd(self) -> None:
        """Run the command (the name is pydantic-settings' hook)."""
        result = self.run()
        if result is None:
            return
        if self.as_json:
            self.print_json(result)
        if exit_code := self.exit_code(result):
            raise Ended(exit_code)

    def exit_code(self, result: Mapping[str, Any]) -> int:
        """What a command that did its work ends with: 0, unless its result says more than that it is there."""
        return 0

    @staticmethod
    def print_json(result: Mapping[str, Any]) -> None:
        """Print one JSON object as one line of stdout, at once."""
        print(json.dumps(result, allow_nan=False), flush=True)


class _CommandLine(BaseSettings):
    """pydantic-settings with two sources only: the command line, then the values given (a configuration file's)."""

    model_config = SettingsConfigDict(
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_enforce_required=True,
        cli_exit_on_error=False,
        cli_shortcuts={"num_candidates": "k"},
        nested_model_default_partial_update=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave environment variables and secret files out: what decides a run is on its command line."""
        return (init_settings,)


def main(
    command: type[Options],
    program: str,
    arguments: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    refusals: tuple[type[Exception], ...] = (UsageError,),
) -> int:
    """Parse, check and run `command`; give the exit code.

    Args:
        command: a `Command`, or an `Options` with one `CliSubCommand` field per command.
        program: what the help calls the program, such as `python -m serving`.
        arguments: the command line; default `sys.argv[1:]`.
        settings: values below the command line and above the defaults (a configuration file's).
        refusals: the errors whose message is for the user.

    Returns:
        0, or what the command found (`Command.exit_code`), or 2 after one line on stderr when the input cannot be used.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    settings_class = type(command.__name__, (_CommandLine, command), {"__doc__": inspect.getdoc(command)})
    source: CliSettingsSource[Any] = CliSettingsSource(
        settings_class, cli_prog_name=program, add_argument_method=in_sections(command.sections)
    )
    if command.sections:
        source.root_parser.usage = f"{program} [options]"
    try:
        CliApp.run(settings_class, cli_args=arguments, cli_settings_source=source, **(settings or {}))
    except ValidationError as error:
        return fail(one_line(error))
    except SettingsError as error:
        return fail(str(error).removeprefix("error parsing CLI: "))
    except Ended as ended:
        return ended.exit_code
    except refusals as error:
        return fail(str(error))
    except BrokenPipeError:  # `... | head` closed stdout: nobody is left to read the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        return fail(f"{error.filename or 'a file'}: {error.strerror or error}")
    return 0


def in_sections(sections: Mapping[str, str]) -> Callable[..., argparse.Action]:
    """What adds an option to a parser: under the title of the last option before it that begins a section.

    An option of a nested model has a group of its own already.
    """
    group: argparse._ArgumentGroup | None = None

    def add(place: argparse._ActionsContainer, *names: str, **settings: Any) -> argparse.Action:
        nonlocal group
        if title := sections.get(settings.get("dest", "")):
            group = place.add_argument_group(title)
        is_nested = isinstance(place, argparse._ArgumentGroup)
        return (place if is_nested or group is None else group).add_argument(*names, **settings)

    return add


def one_line(error: ValidationError) -> str:
    """Say a validation error's first problem in one line: option, value, rule."""
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    rule = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{name} is required"
    if first["type"] == "extra_forbidden":
        return f"{name} is not an option"
    return f"{name} ({first['input']}): {rule}" if name else rule


def fail(message: str) -> int:
    """Print one line on stderr and give the exit code of unusable input."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def note(message: str) -> None:
    """Tell the user something that is not a result, on stderr."""
    Console(stderr=True, highlight=False).print(message, soft_wrap=True, markup=False)


def show(table: Table) -> None:
    """Print a result table on stdout, never cut to the width of a pipe."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    console.print(table)


__all__ = ["Command", "Ended", "Options", "UsageError", "fail", "main", "note", "one_line", "show"]
