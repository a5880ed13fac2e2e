"""What the evaluator's tests share: runs, a bundle, and a log of what the bundle drew."""

from pathlib import Path

import pytest

from esr_trainer.__main__ import command_line
from esr_trainer.synthetic import synthetic_world
from serving.export import export
from tests.offline_eval.served_logs import served, write

WORLD = synthetic_world(60, 40)
SMALL = "--environment synthetic --contexts 60 --items 40 --candidates 5 --slate 2 --experts 2 --lsr uniform --seed 1"


@pytest.fixture(scope="session")
def served_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `logged` and `better`, a bundle of the first, and 1,500 rounds that the bundle drew in feedback.db."""
    root = tmp_path_factory.mktemp("runs")
    for name, steps in (("logged", 30), ("better", 150)):
        assert command_line([*SMALL.split(), "--steps", str(steps), "--out", str(root / name)]) == 0
    export(root / "logged", root / "bundles")
    write(root / "feedback.db", served(root / "bundles", WORLD, 1500))
    return root
