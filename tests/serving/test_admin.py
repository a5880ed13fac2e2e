"""An operator's calls to a real server: by hand what the watcher does by itself."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from serving import client
from tests.conftest import run_module, started
from tests.serving.live import Admin, load_on, publish
from tests.serving.test_versions import flip, other_schema

TOKEN, OTHER = "operators-own-token", "clients-own-token-0"


@pytest.fixture(scope="module")
def live(bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Admin, str, str]]:
    """An operator's client, the server's address and its admin address: 1 is active, 2 and 3 are good, 4 and 5 bad."""
    directory = tmp_path_factory.mktemp("admin")
    root = directory / "bundles"
    shutil.copytree(bundles, root)
    (directory / "token").write_text(TOKEN + "\n")
    (directory / "other").write_text(OTHER)
    options = ("--admin-port", "0", "--admin-token-file", str(directory / "token"), "--pin", "1")
    with started(root, *options) as (_, facts):
        publish(root, 2)
        publish(root, 3)
        publish(root, 4, flip)
        publish(root, 5, other_schema)
        yield Admin(facts["admin_address"], TOKEN), facts["address"], facts["admin_address"]


def code(raised: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    found: grpc.StatusCode = raised.value.code()
    return found


def test_versions_are_listed_loaded_activated_and_rolled_back_under_load(live: tuple[Admin, str, str]) -> None:
    admin, address, _ = live
    with pytest.raises(grpc.RpcError, match="no version was active before") as raised:
        admin.roll_back()
    assert code(raised) is grpc.StatusCode.FAILED_PRECONDITION
    with load_on(address) as load:
        assert [(known.version, known.state) for known in admin.list().versions] == [
            (1, 3),
            *((v, 1) for v in range(2, 6)),
        ]
        assert admin.list().follows_latest is False
        loaded = admin.load(2)
        assert (loaded.version, loaded.model_id) == (2, "model-2")
        assert admin.state(2) == ("LOADED", "")
        assert client.retrieve(address, "5", 3)[2] == 1, "loaded is not switched to"
        assert admin.activate(2).model_id == "model-2"
        assert client.retrieve(address, "5", 3)[1:] == ("model-2", 2)
        assert admin.activate(3).version == 3
        listing = admin.list()
        assert (listing.active_version, listing.previous_version) == (3, 2)
        assert admin.roll_back().version == 2
        assert client.retrieve(address, "5", 3)[2] == 2
    assert load.codes() == {"OK"}


@pytest.mark.parametrize(
    ("version", "expected", "why"),
    [
        (99, grpc.StatusCode.NOT_FOUND, "version (99) is not under the bundle root"),
        (2**64 - 1, grpc.StatusCode.NOT_FOUND, "is not under"),
        (4, grpc.StatusCode.DATA_LOSS, "items.faiss was changed"),
        (5, grpc.StatusCode.FAILED_PRECONDITION, "schema version 99"),
    ],
)
def test_what_cannot_be_served_is_refused_with_its_reason(
    version: int, expected: grpc.StatusCode, why: str, live: tuple[Admin, str, str]
) -> None:
    admin, address, _ = live
    before = admin.active()
    for ask in (admin.load, admin.activate):
        with pytest.raises(grpc.RpcError) as raised:
            ask(version)
        assert code(raised) is expected
        assert why in raised.value.details()
    assert admin.active() == before == client.retrieve(address, "5", 3)[2]


def test_version_0_cannot_be_loaded(live: tuple[Admin, str, str]) -> None:
    with pytest.raises(grpc.RpcError, match="version \\(0\\) must be at least 1") as raised:
        live[0].load(0)
    assert code(raised) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("token", ["", OTHER, TOKEN + "x"])
def test_an_admin_call_needs_the_admin_token(token: str, live: tuple[Admin, str, str]) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        Admin(live[2], token).list()
    assert code(raised) is grpc.StatusCode.UNAUTHENTICATED


def test_the_admin_service_is_not_on_the_clients_port(live: tuple[Admin, str, str]) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        Admin(live[1], TOKEN).list()
    assert code(raised) is grpc.StatusCode.UNIMPLEMENTED


def test_an_open_admin_address_needs_a_token(bundles: Path) -> None:
    done = run_module("serving", "serve", bundles, "--port", "0", "--admin-port", "0", "--admin-host", "0.0.0.0")
    assert done.returncode == 2
    assert done.stderr == "error: admin-host (0.0.0.0) is open to other machines: it needs admin-token-file\n"


def test_without_a_bundle_a_server_may_wait_for_one(bundles: Path, tmp_path: Path) -> None:
    root = tmp_path / "bundles"
    root.mkdir()
    with started(root, "--wait-for-bundle", "--poll-seconds", "0.05") as (_, facts):
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        assert facts["version"] == 0
        with grpc.insecure_channel(facts["address"]) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            with pytest.raises(client.CallError, match="UNAVAILABLE"):
                client.retrieve(facts["address"], "5", 3)
            shutil.copytree(bundles / "1", root / ".unfinished-1")
            (root / ".unfinished-1").rename(root / "1")
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            assert client.retrieve(facts["address"], "5", 3)[2] == 1
            watch.cancel()
