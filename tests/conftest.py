"""What tests share: the real data, one small trained run, its bundle, and a server process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests run side by side, on as many cores
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is: without a GPU its kernels run on the CPU

from tests.postgres import PostgresServer, postgres_server

ROOT = Path(__file__).parents[1]

hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")  # a run is what the one before was; --hypothesis-profile=default is not


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fail-on-skip", action="store_true", help="a skipped test fails: for CI, where nothing may be missing"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test begins first, or one of two cores would wait for it at the end."""
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")


MACHINE = "this machine"
"""How the reason of a skip begins that no installation could avoid, such as a container that may not mount a disk."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.skipped and item.config.getoption("--fail-on-skip") and f"Skipped: {MACHINE}" not in str(report.longrepr):
        report.outcome = "failed"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Any:
    report = yield
    if report.skipped and collector.config.getoption("--fail-on-skip"):
        report.outcome = "failed"
    return report


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and golden numbers."""
    path = Path(os.environ.get("ESR_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"no data folder at {path}; set ESR_SHARED")
    return path


def run_module(module: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `python -m module` as a user would."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=options.pop("cwd", ROOT), **options)


def last_json(output: str) -> dict[str, Any]:
    """The JSON object on the last line of stdout."""
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


@contextmanager
def serving(root: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A real server process on a free port: the process and its address."""
    with started(root, *arguments) as (process, facts):
        yield process, facts["address"]


@contextmanager
def started(root: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A real server process on a free port: the process and the JSON that it printed once it answered."""
    command = [sys.executable, "-m", "serving", "serve", str(root), "--port", "0", "--json", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(f"the server did not start: {process.communicate()[1]}")
        yield process, json.loads(line)
    finally:
        process.kill()
        process.communicate()


def stock_client(address: str, context_ids: list[str], num_candidates: int) -> dict[str, Any]:
    """What the stock tritonclient gets from a server, in a process of its own."""
    asked = json.dumps({"context_ids": context_ids, "num_candidates": num_candidates})
    done = run_module("tests.triton_client", address, "esr", input=asked, timeout=60)
    assert done.returncode == 0, done.stderr
    return last_json(done.stdout)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run on the synthetic world: M = 3 experts, K = 10, L = 2."""
    from esr_trainer.__main__ import command_line

    run = tmp_path_factory.mktemp("trained") / "run"
    options = "--environment synthetic --candidates 10 --slate 2 --experts 3 --steps 60 --seed 1"
    assert command_line([*options.split(), "--out", str(run)]) == 0
    return run


@pytest.fixture(scope="session")
def bundles(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle root with version 1 of the small run."""
    from serving.export import export

    root = tmp_path_factory.mktemp("bundles")
    export(trained_run, root)
    return root


@pytest.fixture(scope="session")
def server(bundles: Path) -> Iterator[str]:
    """The address of a server of the small run's bundle."""
    with serving(bundles, "--reflection") as (_, address):
        yield address


@pytest.fixture(params=["cpu", "cuda"])
def kernel_device(request: pytest.FixtureRequest) -> str:
    """Where Triton's kernels can run here: on a GPU, or where there is none on the CPU, interpreted."""
    has_gpu, name = os.environ.get("TRITON_INTERPRET") != "1", str(request.param)
    if has_gpu != (name == "cuda"):
        pytest.skip(f"{MACHINE} has a GPU" if has_gpu else f"{MACHINE} has no GPU")
    return name


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[int], str]:
    """Check that a command ended as unusable input must, and give its one line."""

    def check(code: int) -> str:
        out, err = capsys.readouterr()
        lines = err.strip().splitlines()
        assert code == 2
        assert lines, "an error is said"
        assert lines[-1].startswith("error: ")
        assert "Traceback" not in err + out
        return lines[-1]

    return check
