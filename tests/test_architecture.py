"""Which room may enter which (DESIGN: one direction)."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

ROOMS = ("esr_trainer", "serving", "offline_eval")
SERVED = tuple(
    f"esr_trainer.{name}"
    for name in ("faiss_bytes", "feedback_", "hashed_text", "onnx_session", "quotas", "vocabularies")
)
"""What the server may take from the trainer's room."""
TORCH_FREE = (
    *SERVED,
    *(f"esr_trainer.{name}" for name in ("command_line", "features", "table_files", "whole_directory")),
)
"""What serving's commands and publishing may take beside."""
PUBLISHING = ("__main__", "index_building", "items", "bench_index", "stand_in")
"""serving's modules that a server does not load, beside its commands."""

JUDGES = {
    "replay": (),
    "logs": ("replay",),
    "procedures": ("replay", "logs"),
    "reproduce": ("procedures",),
    "report": ("replay", "logs", "procedures", "reproduce"),
}
"""offline_eval's rooms, and which of them each may enter; its commands, at the top, may enter all."""

MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py") if "wire" not in path.parts)


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def inside(names: set[str], room: str) -> set[str]:
    return {name for name in names if name.split(".")[0] == room}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms(path: Path) -> None:
    names = imports(path)
    room = path.relative_to(ROOT).parts[0]
    if room == "esr_trainer":
        assert not inside(names, "serving")
        assert not inside(names, "offline_eval")
    if room == "serving":
        assert not inside(names, "offline_eval")
        if not path.stem.startswith("export"):
            assert not inside(names, "torch")
            publishes = path.stem in PUBLISHING or "command" in path.stem
            may = TORCH_FREE if publishes else SERVED
            assert not {name for name in inside(names, "esr_trainer") if not name.startswith(may)}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_of_the_evaluator(path: Path) -> None:
    place = path.relative_to(ROOT).parts
    if place[0] == "offline_eval" and len(place) > 2:
        entered = {name.split(".")[1] for name in inside(imports(path), "offline_eval") if "." in name}
        assert not {name for name in entered if "command" in name}
        assert entered & set(JUDGES) <= {place[1], *JUDGES[place[1]]}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles(path: Path) -> None:
    names = imports(path)
    assert not names & {"pickle", "dill", "joblib", "shelve", "marshal"}
    text = path.read_text()
    assert "torch.load(" not in text
    assert "allow_pickle=True" not in text


def test_no_module_without_a_subject() -> None:
    assert not {path.stem for path in MODULES} & {"utils", "common", "helpers", "base", "types", "misc"}
