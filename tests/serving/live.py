"""What the tests of a live server share: publishing versions under it, constant load on it, its admin service."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from serving.wire import admin_pb2, admin_pb2_grpc, retrieval_pb2, retrieval_pb2_grpc

REQUEST = retrieval_pb2.RetrieveRequest(context_id="5", num_candidates=10)


def publish(root: Path, version: int, damage: Callable[[Path], None] = lambda directory: None) -> None:
    """Publish a copy of version 1 whose model id tells the version, damaged first, as an exporter does: by a rename."""
    prepare(root, version, damage).rename(root / str(version))


def prepare(root: Path, version: int, damage: Callable[[Path], None] = lambda directory: None) -> Path:
    """Write a version under a name that no server looks at."""
    directory = root / f".unfinished-{version}"
    shutil.copytree(root / "1", directory)
    change_manifest(directory, model_id=f"model-{version}")
    damage(directory)
    return directory


def change_manifest(directory: Path, **change: object) -> None:
    path = directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def wait_until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """The condition's first true value; a deadline only keeps a broken server from hanging the suite."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "the condition was never met"
        time.sleep(0.02)
    return value


def retrieval(address: str) -> retrieval_pb2_grpc.RetrievalServiceStub:
    """A stub on a connection of its own."""
    return retrieval_pb2_grpc.RetrievalServiceStub(own_channel(address))


def own_channel(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])


class Admin:
    """An operator's client."""

    def __init__(self, address: str, token: str = "") -> None:
        self._stub = admin_pb2_grpc.AdminServiceStub(own_channel(address))
        self._metadata = [("authorization", f"Bearer {token}")] if token else []

    def list(self) -> Any:
        return self._stub.ListVersions(admin_pb2.ListVersionsRequest(), timeout=30, metadata=self._metadata)

    def load(self, version: int) -> Any:
        request = admin_pb2.LoadVersionRequest(version=version)
        return self._stub.LoadVersion(request, timeout=30, metadata=self._metadata).version

    def activate(self, version: int = 0, follow_latest: bool = False) -> Any:
        request = admin_pb2.ActivateVersionRequest(version=version, follow_latest=follow_latest)
        return self._stub.ActivateVersion(request, timeout=30, metadata=self._metadata).version

    def roll_back(self) -> Any:
        return self._stub.RollBack(admin_pb2.RollBackRequest(), timeout=30, metadata=self._metadata).version

    def active(self) -> int:
        return int(self.list().active_version)

    def state(self, version: int) -> tuple[str, str]:
        """State and problem of a version; empty if it is not listed."""
        for known in self.list().versions:
            if known.version == version:
                return admin_pb2.VersionState.Name(known.state).removeprefix("VERSION_STATE_"), known.problem
        return "", ""


class Call(NamedTuple):
    """One call of a client under load."""

    code: str
    version: int
    model_id: str
    seconds: float


class Load:
    """Clients that ask one request after the other; what became of each call."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.ending = threading.Event()

    def ask(self, address: str, pause: float, waits: bool) -> None:
        with own_channel(address) as channel:
            stub = retrieval_pb2_grpc.RetrievalServiceStub(channel)
            while not self.ending.wait(pause) if pause else not self.ending.is_set():
                start = time.perf_counter()
                try:
                    answer = stub.Retrieve(REQUEST, timeout=30, wait_for_ready=waits)
                    assert len(answer.item_ids) == 10
                    end = Call("OK", answer.model_version, answer.model_id, time.perf_counter() - start)
                except grpc.RpcError as error:
                    end = Call(error.code().name, 0, error.details(), time.perf_counter() - start)
                self.calls.append(end)

    def count(self, code: str) -> int:
        return sum(call.code == code for call in self.calls)

    def codes(self) -> set[str]:
        return {call.code for call in self.calls}


@contextmanager
def load_on(address: str, clients: int = 4, pause: float = 0.0, waits: bool = False) -> Iterator[Load]:
    """Constant load within the block, every client on a connection of its own; one that `waits` does so to connect."""
    load = Load()
    threads = [threading.Thread(target=load.ask, args=(address, pause, waits)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(load.calls) > 10 * clients)
        yield load
    finally:
        load.ending.set()
        for thread in threads:
            thread.join()


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
