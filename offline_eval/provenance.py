"""Where a result comes from: command, commit, machine, versions."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def provenance(command: str) -> dict[str, str]:
    """What a result file says of its making."""
    import torch

    return {"command": command, "commit": commit(), "machine": machine(), "torch": torch.__version__}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a result file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1))
    os.replace(temporary, path)


def commit() -> str:
    """The checkout's commit, with a + when files differ from it; unknown outside a checkout."""
    try:
        changed = git("status", "--porcelain", "-uno")
        return f"{git('rev-parse', '--short=12', 'HEAD')}{'+' if changed else ''}"
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def git(*arguments: str) -> str:
    """What a git command says of this checkout."""
    root = Path(__file__).parents[1]
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def machine() -> str:
    """Processor and number of cores, without a name of the machine."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = f"{names[0]} x {len(names)}" if names else model
    return model
