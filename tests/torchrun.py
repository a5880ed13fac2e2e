"""Several processes of one command, as torchrun starts them."""

import os
import subprocess
import sys

from tests.conftest import ROOT


def torchrun(
    processes: int,
    module: str,
    *arguments: object,
    options: tuple[str, ...] = (),
) -> subprocess.Popen[str]:
    """Start `torchrun -m module` on a port of its own, as a user would."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *options]
    return subprocess.Popen(
        [*launch, "-m", module, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Wait for a launch that must go well; give what it printed."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out, err
