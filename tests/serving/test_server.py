"""A real server process, called over the wire."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from esr_trainer.command_line import UsageError, main
from serving import Retriever, client
from serving.__main__ import Serving
from serving.errors import ServingError
from serving.wire import retrieval_pb2, retrieval_pb2_grpc
from tests.conftest import last_json, run_module, serving


def command(*arguments: object) -> int:
    return main(Serving, "python -m serving", [*map(str, arguments)], refusals=(UsageError, ServingError))


@pytest.mark.parametrize("k", [1, 10, 1000])
def test_over_the_wire_as_in_process(k: int, server: str, bundles: Path) -> None:
    retriever = Retriever.open(bundles)
    for context_id in ("0", "17", "999"):
        candidates, model_id, version = client.retrieve(server, context_id, k)
        expected = retriever.retrieve(context_id, k)
        assert candidates.item_ids == expected.item_ids
        assert candidates.experts == expected.experts
        assert candidates.scores == pytest.approx(expected.scores, abs=1e-6)
        assert (model_id, version) == (retriever.bundle.manifest.model_id, 1)


@pytest.mark.parametrize(
    ("context_id", "k", "code", "field"),
    [
        ("5", 0, grpc.StatusCode.INVALID_ARGUMENT, "num_candidates"),
        ("5", 1001, grpc.StatusCode.INVALID_ARGUMENT, "num_candidates"),
        ("", 5, grpc.StatusCode.INVALID_ARGUMENT, "context"),
        ("nobody", 5, grpc.StatusCode.NOT_FOUND, None),
        ("x" * 100_000, 5, grpc.StatusCode.NOT_FOUND, None),
    ],
)
def test_refusals(context_id: str, k: int, code: grpc.StatusCode, field: str | None, server: str) -> None:
    with grpc.insecure_channel(server) as channel:
        stub = retrieval_pb2_grpc.RetrievalServiceStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            stub.Retrieve(retrieval_pb2.RetrieveRequest(context_id=context_id, num_candidates=k), timeout=5)
    assert raised.value.code() is code
    assert len(raised.value.details()) < 300
    status = rpc_status.from_call(raised.value)
    violations = []
    for detail in status.details if status else ():
        request = error_details_pb2.BadRequest()
        assert detail.Unpack(request)
        violations += [violation.field for violation in request.field_violations]
    assert violations == ([field] if field else [])


def test_standard_health_check(server: str) -> None:
    with grpc.insecure_channel(server) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "esr.v1.RetrievalService"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as raised:
            stub.Check(health_pb2.HealthCheckRequest(service="other"), timeout=5)
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_describes_the_service(server: str) -> None:
    with grpc.insecure_channel(server) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert "esr.v1.RetrievalService" in database.get_services()
        assert database.FindFileContainingSymbol("esr.v1.RetrieveRequest").name == "esr/v1/retrieval.proto"


def test_the_process_never_loads_torch(bundles: Path) -> None:
    with serving(bundles) as (process, address):
        client.retrieve(address, "5", 10)
        maps = Path(f"/proc/{process.pid}/maps").read_text()
    assert "faiss" in maps
    assert "onnxruntime" in maps
    assert "torch" not in maps
    program = "import sys, serving, serving.__main__, serving.server; assert 'torch' not in sys.modules"
    assert run_module("timeit", "-n1", "-r1", program, env={"PATH": ""}).returncode == 0, sys.executable


def test_sigterm_says_so_to_whoever_watches_and_ends_well(bundles: Path) -> None:
    with serving(bundles) as (process, address), grpc.insecure_channel(address) as channel:
        client.retrieve(address, "5", 10)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        process.send_signal(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        assert process.wait(timeout=20) == 0


def test_ipv6(bundles: Path) -> None:
    with serving(bundles, "--host", "::1") as (_, address):
        assert len(client.retrieve(address, "5", 3)[0].item_ids) == 3


def test_a_port_in_use_is_one_line(server: str, bundles: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    done = run_module("serving", "serve", bundles, "--port", server.rpartition(":")[2], env=env, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"error: address ({server}) cannot be listened on: is the port in use?"]


def test_a_changed_byte_keeps_the_server_from_starting(bundles: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(bundles, tmp_path / "bundles")
    path = tmp_path / "bundles" / "1" / "items.faiss"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    done = run_module("serving", "serve", tmp_path / "bundles", "--port", "0")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: bundles ({tmp_path / 'bundles'}): items.faiss was changed")
    assert len(done.stderr.splitlines()) == 1


def test_the_client_prints_the_candidates(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("retrieve", "--context-id", "5", "-k", "4", "--address", server, "--json") == 0
    out = capsys.readouterr().out
    result = last_json(out)
    assert len(result["item_ids"]) == 4
    for position, item in enumerate(result["item_ids"], start=1):
        assert any(f" {position} " in line and f" {item} " in line for line in out.splitlines()[:-1])


def test_the_clients_errors_are_one_line(server: str, refused: Callable[[int], str]) -> None:
    assert "NOT_FOUND" in refused(command("retrieve", "--context-id", "nobody", "--address", server))
    assert "INVALID_ARGUMENT" in refused(command("retrieve", "--context-id", "5", "-k", "0", "--address", server))
    assert "UNAVAILABLE" in refused(command("retrieve", "--context-id", "5", "--address", "127.0.0.1:1"))
    assert "k (-1)" in refused(command("retrieve", "--context-id", "5", "-k", "-1", "--address", server))
    assert "--context-id" in refused(command("retrieve"))
    assert "cannot be sent" in refused(command("retrieve", "--context-id", "\udcff", "--address", server))
