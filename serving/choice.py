"""What an operator chose to serve, and the file that keeps it, so that it outlives the server."""

import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from serving.errors import NotServingError
from serving.server_options import OptionError, ServerOptions

log = logging.getLogger(__name__)


class Chosen(NamedTuple):
    """What an operator chose to serve."""

    version: int = 0
    """The version that was activated; 0: none was."""
    follows_latest: bool = True
    above: int = 0
    """Only versions above this one are followed: the others were there when the choice was made."""


def chosen_at_start(options: ServerOptions) -> Chosen:
    """What the options, or an earlier server's file, say is to be served.

    Raises:
        OptionError: both do, or the file holds no choice.
    """
    path = options.choice_file
    if path is None:
        return Chosen(options.pin, follows_latest=not options.pin)
    if options.pin:
        raise OptionError(f"pin ({options.pin}) and choice-file ({path}) both say what to serve: give one")
    try:
        chosen = TypeAdapter(Chosen).validate_json(path.read_bytes())
    except FileNotFoundError:
        return Chosen()
    except OSError as error:
        raise OptionError(f"choice-file ({path}) cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise OptionError(f"choice-file ({path}) holds no choice; remove it to follow the highest version") from error
    log.info("as was chosen: version %d, following the highest: %s", chosen.version, chosen.follows_latest)
    return chosen


def keep(path: Path | None, chosen: Chosen) -> None:
    """Write a choice that was made, whole or not at all; nothing without a file.

    Raises:
        NotServingError: it is made, but cannot be written.
    """
    if path is None:
        return
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(json.dumps(chosen._asdict()).encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        log.warning("the choice of version %d cannot be kept: %s", chosen.version, error.strerror)
        reason = f"version ({chosen.version}) answers now, but that cannot be kept over a restart: {error.strerror}"
        raise NotServingError(reason) from error
