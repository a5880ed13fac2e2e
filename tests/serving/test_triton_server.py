"""Triton itself, on a CPU, answers with the exported model of its Python backend.

The binaries are those of the nvidia-pytriton wheel: Triton 2.51 with the Python backend, without the ONNX Runtime one.
That Triton reads text wrongly under NumPy 2 (later ones do not: python_backend pull request 384), so it gets NumPy 1.
"""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from serving import Retriever
from serving.export import export_for_triton
from serving.wire import open_inference_pb2 as wire
from serving.wire import open_inference_pb2_grpc
from tests.conftest import ROOT, stock_client

pytestmark = pytest.mark.slow

WHEEL = "nvidia-pytriton==0.7.0"


@pytest.fixture
def triton(tmp_path: Path) -> Path:
    """The server's directory, its Python backend with the package installed."""
    library = Path(sysconfig.get_config_var("LIBDIR")) / str(sysconfig.get_config_var("INSTSONAME"))
    if not sysconfig.get_config_var("Py_ENABLE_SHARED") or not library.is_file():
        pytest.skip(f"this machine has no {library.name}: Triton's Python backend needs Python as a shared library")
    pip = [sys.executable, "-m", "pip", "-q"]
    subprocess.run([*pip, "download", "--no-deps", "--dest", tmp_path, WHEEL], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    server = tmp_path / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        pytest.skip(f"this machine's Python {version} has no backend in {WHEEL}")
    backend = server / "backends" / "python"
    shutil.copy(stub, backend)
    for program in (server / "bin" / "tritonserver", backend / stub.name):
        program.chmod(0o755)
    packages = server / "packages"
    subprocess.run([*pip, "install", "--target", packages, ROOT], check=True)
    shutil.rmtree(packages / "numpy")
    subprocess.run([*pip, "install", "--no-deps", "--upgrade", "--target", packages, "numpy==1.26.4"], check=True)
    return server


@contextmanager
def serving(server: Path, repository: Path) -> Iterator[str]:
    """Triton with a model repository: its gRPC address, once it is ready."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    options = {
        "model-repository": repository,
        "backend-directory": server / "backends",
        "grpc-address": "127.0.0.1",
        "grpc-port": port,
        "allow-http": "false",
        "allow-metrics": "false",
    }
    command = [server / "bin" / "tritonserver", *(f"--{name}={value}" for name, value in options.items())]
    env = os.environ | {"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR"))}
    with (server / "log").open("w") as log:
        # Its interpreter ignores PYTHONPATH, and looks into the current directory first.
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=server / "packages")
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            ready = stub.ServerReady(wire.ServerReadyRequest(), wait_for_ready=True, timeout=60).ready
        assert ready, (server / "log").read_text()
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_triton_answers_as_the_retriever_does(triton: Path, bundles: Path, tmp_path: Path) -> None:
    export_for_triton(bundles / "1", tmp_path / "models")
    shutil.rmtree(tmp_path / "models" / "user_tower")  # no ONNX Runtime backend in the wheel
    retriever = Retriever.open(bundles)
    contexts = retriever.bundle.context_ids[::10]
    with serving(triton, tmp_path / "models") as address:
        found = stock_client(address, contexts, 20)
        refusals = [refusal(address, context_id) for context_id in (b"nobody", b"")]
    for row, context_id in enumerate(contexts):
        expected = retriever.retrieve(context_id, 20)
        assert found["ITEM_IDS"][row] == expected.item_ids
        assert found["SCORES"][row] == pytest.approx(expected.scores, abs=1e-5)
        assert found["EXPERTS"][row] == expected.experts
    assert (found["model_ready"], found["version"]) == (True, "1")
    assert refusals == [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT]


def refusal(address: str, context_id: bytes) -> Any:
    """The status of a request for one context; our stubs speak to Triton as its own client does."""
    contents = wire.InferTensorContents(bytes_contents=[context_id])
    given = wire.ModelInferRequest.InferInputTensor(
        name="CONTEXT_ID", datatype="BYTES", shape=[1, 1], contents=contents
    )
    with grpc.insecure_channel(address) as channel:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            stub.ModelInfer(wire.ModelInferRequest(model_name="esr", inputs=[given]), timeout=10)
    return raised.value.code()
