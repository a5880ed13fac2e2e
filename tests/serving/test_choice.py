"""What an operator chose outlives the server, over real restarts."""

import json
import shutil
from pathlib import Path

import grpc
import pytest

from serving import client
from serving.choice import Chosen, chosen_at_start, keep
from serving.errors import NotServingError
from serving.server_options import OptionError, ServerOptions
from tests.conftest import run_module, started
from tests.serving.live import Admin, publish


@pytest.fixture
def root(bundles: Path, tmp_path: Path) -> Path:
    """A bundle root with versions 1 to 3."""
    root = tmp_path / "bundles"
    shutil.copytree(bundles, root)
    for version in (2, 3):
        publish(root, version)
    return root


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_activated_or_rolled_back_to_is_served_after_a_restart(
    workers: int, root: Path, tmp_path: Path
) -> None:
    options = ("--choice-file", str(tmp_path / "choice"), "--admin-port", "0", "--workers", str(workers))
    with started(root, *options) as (process, facts):
        assert facts["version"] == 3, "nothing was chosen yet"
        Admin(facts["admin_address"]).activate(2)
        process.kill()
        process.wait()
    with started(root, *options) as (process, facts):
        assert facts["version"] == 2
        admin = Admin(facts["admin_address"])
        assert not admin.list().follows_latest
        admin.activate(1)
        assert admin.roll_back().version == 2
    with started(root, *options) as (_, facts):
        assert client.retrieve(facts["address"], "5", 3)[2] == 2
        Admin(facts["admin_address"]).activate(1, follow_latest=True)
    with started(root, *options) as (_, facts):
        assert facts["version"] == 1, "3 was there when 1 was chosen"
        assert Admin(facts["admin_address"]).list().follows_latest


def test_a_choice_that_cannot_be_kept_is_made_and_said_so(root: Path, tmp_path: Path) -> None:
    options = ("--choice-file", str(tmp_path / "no" / "choice"), "--admin-port", "0")
    with started(root, *options) as (_, facts):
        admin = Admin(facts["admin_address"])
        with pytest.raises(grpc.RpcError) as refused:
            admin.activate(1)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "version (1) answers now, but that cannot be kept" in str(refused.value.details())
        assert str(tmp_path) not in str(refused.value.details())
        assert admin.active() == 1


def test_a_choice_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "choice"
    options = ServerOptions(root=tmp_path, choice_file=path)
    assert chosen_at_start(options) == Chosen()
    for chosen in (Chosen(7, follows_latest=True, above=9), Chosen(2, follows_latest=False)):
        keep(path, chosen)
        assert chosen_at_start(options) == chosen
    assert [entry.name for entry in tmp_path.iterdir()] == ["choice"]
    with pytest.raises(NotServingError):
        keep(path / "under-a-file", chosen)


@pytest.mark.parametrize("content", ["", "{", json.dumps({"version": "two"}), "null"])
def test_a_file_that_holds_no_choice_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "choice"
    path.write_text(content)
    with pytest.raises(OptionError, match="holds no choice"):
        chosen_at_start(ServerOptions(root=tmp_path, choice_file=path))


def test_two_places_that_say_what_to_serve_are_refused(root: Path, tmp_path: Path) -> None:
    for workers in ("1", "2"):
        done = run_module(
            "serving", "serve", root, "--pin", 2, "--choice-file", tmp_path / "choice", "--workers", workers
        )
        assert done.returncode == 2
        assert done.stderr == f"error: pin (2) and choice-file ({tmp_path}/choice) both say what to serve: give one\n"
