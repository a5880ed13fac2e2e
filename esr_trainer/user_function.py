"""A function of the user's own file, named as FILE.py:function."""

import inspect
import runpy
from collections.abc import Callable
from typing import Any

from esr_trainer.command_line import UsageError


def user_function(given: str, option: str) -> Callable[..., Any]:
    """Run the file and give its function.

    Args:
        given: FILE.py:function.
        option: what the user gave it as.

    Raises:
        UsageError: the file cannot be run, or has no such function.
    """
    path, _, name = given.rpartition(":")
    try:
        found = runpy.run_path(path).get(name)
    except Exception as error:
        raise UsageError(f"{option} ({given}) cannot be loaded: {type(error).__name__}: {error}") from error
    if not inspect.isfunction(found):
        raise UsageError(f"{option} ({given}): {path} has no function {name}")
    return found
