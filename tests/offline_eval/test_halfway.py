"""A killed run goes on bit for bit; real processes."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from esr_trainer.checkpoint import checkpoints
from esr_trainer.command_line import UsageError
from esr_trainer.config import TrainConfig
from offline_eval.reproduce.halfway import learn_resumably
from tests.conftest import ROOT

CONFIG = TrainConfig(
    environment="synthetic", contexts=30, items=40, candidates=4, experts=2, steps=10**6, evaluate_every=10, batch=32
)


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    program = (
        "import sys; from pathlib import Path; from esr_trainer.config import TrainConfig; "
        "from offline_eval.reproduce.halfway import learn_resumably; "
        "learn_resumably(TrainConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2])); print('over')"
    )
    command = [sys.executable, "-c", program, CONFIG.model_dump_json(), str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not any(int(path.name) for path in checkpoints(folder)):
        time.sleep(0.01)
    process.kill()
    assert process.communicate()[0] == "", "it was killed before it was over"
    assert process.returncode == -signal.SIGKILL
    reached = int(checkpoints(folder)[-1].name)
    shorter = CONFIG.model_copy(update={"steps": reached + 150})
    resumed = learn_resumably(shorter, folder)
    assert resumed == learn_resumably(shorter, tmp_path / "whole")
    assert resumed.steps == list(range(0, shorter.steps + 1, CONFIG.evaluate_every))


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    short = CONFIG.model_copy(update={"steps": 200})
    learn_resumably(short, tmp_path)
    with pytest.raises(UsageError, match="only steps, data"):
        learn_resumably(short.model_copy(update={"seed": 1}), tmp_path)
