"""Versions in one process, and published under a live server while clients ask without a pause."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from serving.choice import Chosen
from serving.errors import BundleCorruptError, BundleUnusableError, NotServingError, UnknownVersionError
from serving.retriever import Retriever
from serving.versions import State, Versions, VersionStatus
from tests.conftest import ROOT, started
from tests.serving.live import Admin, Call, change_manifest, load_on, prepare, publish, wait_until
from tests.serving.test_bundle import rewrite


@pytest.fixture
def root(bundles: Path, tmp_path: Path) -> Path:
    shutil.copytree(bundles, tmp_path / "bundles")
    return tmp_path / "bundles"


def versions_of(root: Path, chosen: Chosen = Chosen()) -> Versions:  # noqa: B008
    versions = Versions(root, chosen)
    versions.start()
    return versions


def state(versions: Versions, version: int) -> VersionStatus:
    return next(status for status in versions.states() if status.version == version)


def served(versions: Versions) -> int:
    return versions.current().bundle.version


def flip(directory: Path) -> None:
    content = bytearray((directory / "items.faiss").read_bytes())
    content[len(content) // 2] ^= 1
    (directory / "items.faiss").write_bytes(content)


def remove(directory: Path) -> None:
    (directory / "context_ids.npy").unlink()


def other_schema(directory: Path) -> None:
    change_manifest(directory, schema_version=99)


def other_answers(directory: Path) -> None:
    index = faiss.IndexFlatIP(10)
    index.add(np.ones((3000, 10), np.float32))
    rewrite(directory, "items.faiss", faiss.serialize_index(index).tobytes())


def truncated_onnx(directory: Path) -> None:
    content = (directory / "user_tower.onnx").read_bytes()
    rewrite(directory, "user_tower.onnx", content[: len(content) // 2])


def header_bomb(directory: Path) -> None:
    content = bytearray((directory / "items.faiss").read_bytes())
    content[8:16] = (1 << 60).to_bytes(8, "little")
    rewrite(directory, "items.faiss", bytes(content))


def half_written(directory: Path) -> None:
    for path in sorted(directory.iterdir())[:5]:
        if path.name != "manifest.json":
            path.write_bytes(path.read_bytes()[:100])


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (flip, "items.faiss was changed"),
    (remove, "context_ids.npy is missing"),
    (other_schema, "schema version 99"),
    (other_answers, "golden queries"),
    (truncated_onnx, "cannot be parsed"),
    (header_bomb, "index vectors"),
    (half_written, "bytes, not"),
]


def test_every_kind_of_bad_bundle_is_refused_under_load_without_a_failed_request(root: Path) -> None:
    options = ("--admin-port", "0", "--poll-seconds", "0.05")
    with started(root, *options) as (process, facts):
        admin = Admin(facts["admin_address"])
        with load_on(facts["address"]) as load:
            for version, (damage, why) in enumerate(DAMAGES, start=2):
                publish(root, version, damage)
                wait_until(lambda version=version: admin.state(version)[0] == "REFUSED")
                assert why in admin.state(version)[1]
                assert str(root) not in admin.state(version)[1], "no path of the server"
                assert admin.active() == 1
            good = len(DAMAGES) + 2
            publish(root, good)
            wait_until(lambda: load.calls[-1].version == good)
        process.terminate()
        errors = process.communicate()[1]
    assert load.codes() == {"OK"}
    answers = {(call.version, call.model_id) for call in load.calls}
    assert {version for version, _ in answers} == {1, good}
    assert len(answers) == 2, "a version's answers bear its own model id"
    for version in range(2, good):
        assert errors.count(f"version {version} is refused") == 1, "told once"
    assert process.returncode == 0


def test_a_publisher_killed_at_any_file_leaves_no_version(root: Path) -> None:
    program = """
import os, shutil, signal, sys
from pathlib import Path
from esr_trainer.whole_directory import written_whole
root, last = Path(sys.argv[1]), int(sys.argv[2])
with written_whole(root / "2") as directory:
    for number, path in enumerate(sorted((root / "1").iterdir())):
        if number == last:
            os.kill(os.getpid(), signal.SIGKILL)
        shutil.copy(path, directory)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    versions = versions_of(root)
    for last in range(len(list((root / "1").iterdir())) + 1):
        done = subprocess.run([sys.executable, "-c", program, str(root), str(last)], cwd=ROOT, check=False)
        assert done.returncode == -9
        versions.follow()
        assert [status.version for status in versions.states()] == [1]
    assert len(list(root.glob(".unfinished-*"))) == last + 1


def test_a_request_keeps_the_version_that_it_began_with(root: Path) -> None:
    versions = versions_of(root)
    begun = versions.current()
    publish(root, 2)
    versions.follow()
    assert served(versions) == 2
    assert begun.bundle.version == 1
    assert len(begun.retrieve("5", 10).item_ids) == 10


def test_the_highest_version_that_is_not_refused_is_followed(root: Path) -> None:
    versions = versions_of(root)
    publish(root, 2)
    publish(root, 3, flip)
    versions.follow()
    assert served(versions) == 2
    assert state(versions, 3).state is State.REFUSED


def test_a_refused_version_is_tried_again_when_its_manifest_changes_or_on_demand(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = versions_of(root)
    publish(root, 2, remove)
    tried = 0
    opened = Retriever.open

    def counted(root: str | Path, *arguments: Any) -> Retriever:
        nonlocal tried
        tried += 1
        return opened(root, *arguments)

    monkeypatch.setattr(Retriever, "open", counted)
    for _ in range(3):
        versions.follow()
    assert tried == 1
    with pytest.raises(BundleCorruptError, match="is missing"):
        versions.load(2)
    assert tried == 2
    shutil.copy(root / "1" / "context_ids.npy", root / "2")
    versions.follow()
    assert served(versions) == 1
    change_manifest(root / "2", model_id="mended")
    versions.follow()
    assert served(versions) == 2
    assert state(versions, 2) == VersionStatus(2, State.ACTIVE, "mended", "")


def test_a_refused_highest_version_does_not_keep_a_server_from_starting_with_the_next(root: Path) -> None:
    publish(root, 2, flip)
    versions = versions_of(root)
    assert served(versions) == 1
    assert state(versions, 2).state is State.REFUSED
    flip(root / "1")
    with pytest.raises(BundleCorruptError, match="was changed"):
        versions_of(root)


def test_roll_back_returns_to_the_version_before_and_stays(root: Path) -> None:
    versions = versions_of(root)
    with pytest.raises(BundleUnusableError, match="no version was active before"):
        versions.roll_back()
    publish(root, 2)
    versions.follow()
    assert versions.roll_back().version == 1
    publish(root, 3)
    versions.follow()
    assert served(versions) == 1
    assert versions.roll_back().version == 2, "and forth again"


def test_roll_back_does_not_wait_for_a_version_that_loads_and_is_not_undone_by_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = versions_of(root)
    publish(root, 2)
    versions.follow()
    publish(root, 3)
    opened = Retriever.open
    is_loading, may_end = threading.Event(), threading.Event()

    def slow(root: str | Path, *arguments: Any) -> Retriever:
        is_loading.set()
        assert may_end.wait(30)
        return opened(root, *arguments)

    monkeypatch.setattr(Retriever, "open", slow)
    follower = threading.Thread(target=versions.follow)
    follower.start()
    assert is_loading.wait(30)
    versions.roll_back()
    assert served(versions) == 1
    may_end.set()
    follower.join()
    assert served(versions) == 1


def test_activate_stays_unless_told_to_follow_what_is_published_from_then_on(root: Path) -> None:
    for version in (2, 3):
        publish(root, version)
    versions = versions_of(root)
    assert served(versions) == 3
    assert versions.activate(1).version == 1
    versions.follow()
    assert served(versions) == 1
    versions.activate(2, follow_latest=True)
    versions.follow()
    assert served(versions) == 2, "3 was there before"
    publish(root, 4)
    versions.follow()
    assert served(versions) == 4
    assert versions.activate().version == 4
    with pytest.raises(UnknownVersionError, match=r"version \(7\)"):
        versions.activate(7)


def test_memory_holds_the_active_the_previous_and_one_that_was_loaded(root: Path) -> None:
    versions = versions_of(root)
    for version in range(2, 6):
        publish(root, version)
        versions.follow()
    assert [status.state for status in versions.states()] == [State.AVAILABLE] * 3 + [State.LOADED, State.ACTIVE]
    versions.load(1)
    versions.load(2)
    assert [status.state for status in versions.states()][:3] == [State.AVAILABLE, State.LOADED, State.AVAILABLE]
    assert served(versions) == 5


def test_what_was_chosen_is_where_a_new_process_begins(root: Path) -> None:
    for version in (2, 3):
        publish(root, version)
    assert served(versions_of(root, Chosen(2, follows_latest=False))) == 2
    assert served(versions_of(root, Chosen(2, follows_latest=True, above=3))) == 2
    assert served(versions_of(root, Chosen(2, follows_latest=True, above=2))) == 3
    with pytest.raises(UnknownVersionError):
        versions_of(root, Chosen(9, follows_latest=False))


def test_without_a_version_there_is_none_to_answer(tmp_path: Path) -> None:
    versions = Versions(tmp_path, Chosen())
    with pytest.raises(NotServingError):
        versions.current()
    with pytest.raises(BundleUnusableError, match="no bundle"):
        versions.start()
    versions.follow()
    assert versions.states() == []


def test_names_that_are_no_version_are_passed_over(root: Path) -> None:
    for name in ("latest", "²", "012", "0", "-1"):
        shutil.copytree(root / "1", root / name)
    (root / "7").mkdir()
    assert [status.version for status in versions_of(root).states()] == [1]


@pytest.mark.slow
def test_a_hundred_switches_under_load_fail_no_request_and_give_their_memory_back(root: Path) -> None:
    calm: list[Call] = []
    switching: list[Call] = []
    prepared = {version: prepare(root, version) for version in range(2, 102)}
    with (
        started(root, "--poll-seconds", "0.05") as (process, facts),
        load_on(facts["address"], clients=4, pause=0.01) as load,
    ):
        wait_until(lambda: len(load.calls) > 1000, 120)
        before = resident(process.pid)
        for block in range(10):  # calm and not, by turns: whatever else the machine does falls on both
            begun = len(load.calls)
            wait_until(lambda begun=begun: len(load.calls) > begun + 400, 120)
            middle = len(load.calls)
            for version in range(10 * block + 2, 10 * block + 12):
                prepared[version].rename(root / str(version))
                wait_until(lambda version=version: load.calls[-1].version == version)
            calm += load.calls[begun:middle]
            switching += load.calls[middle:]
        after = resident(process.pid)
    calm_p99, switching_p99 = (1e3 * np.quantile([call.seconds for call in calls], 0.99) for calls in (calm, switching))
    print(
        f"100 switches, {len(switching)} requests meanwhile, {load.count('OK')} of {len(load.calls)} OK; "
        f"RSS {before / 1e6:.1f} -> {after / 1e6:.1f} MB ({after / before - 1:+.1%}); "
        f"p99 {calm_p99:.2f} ms calm, {switching_p99:.2f} ms while switching"
    )
    assert load.codes() == {"OK"}
    assert {call.version for call in load.calls} == set(range(1, 102))
    assert after <= 1.05 * before


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * 4096


def test_names_and_files_that_are_no_versions_are_left_alone(root: Path) -> None:
    shutil.copytree(root / "1", root / "99999999999999999999999")
    (root / "34").mkdir()
    os.mkfifo(root / "34" / "manifest.json")
    (root / "35" / "manifest.json").mkdir(parents=True)
    versions = versions_of(root)
    versions.follow()
    assert served(versions) == 1
    assert [status.version for status in versions.states()] == [1]
    for version in (34, 35):
        with pytest.raises(UnknownVersionError):
            versions.load(version)
        with pytest.raises(BundleUnusableError, match="not a regular file"):
            Retriever.open(root, version)
