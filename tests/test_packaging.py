"""The container and the manifest: what they say is done for real, as far as it can be without their daemons."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from esr_trainer.command_line import UsageError, main
from serving.__main__ import Serving
from serving.errors import ServingError
from serving.health import LIVENESS
from serving.server_options import ServerOptions
from serving.service import NAME
from tests.conftest import ROOT, run_module

PORT = "50051"
DRAIN_SECONDS = ServerOptions.model_fields["drain_seconds"].default


def dockerfile() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, each on one line."""
    text = (ROOT / "packaging" / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def instructions(name: str) -> list[str]:
    return [rest for found, rest in dockerfile() if found == name]


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    found = yaml.safe_load_all((ROOT / "packaging" / "kubernetes.yaml").read_text())
    return {manifest["kind"]: manifest for manifest in found}


@pytest.fixture(scope="module")
def pod(manifests: dict[str, Any]) -> Any:
    return manifests["Deployment"]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod: Any) -> Any:
    (found,) = pod["containers"]
    return found


PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


@pytest.mark.parametrize("probe", PROBES)
def test_a_server_answers_the_probes(probe: str, container: Any, server: str) -> None:
    asked = container[probe]["grpc"]
    assert asked["port"] == int(PORT)
    with grpc.insecure_channel(server) as channel:
        request = health_pb2.HealthCheckRequest(service=asked["service"])
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_ready_and_alive_are_asked_apart(container: Any) -> None:
    asked = [container[probe]["grpc"]["service"] for probe in PROBES]
    assert asked == [LIVENESS, NAME, LIVENESS]


def test_draining_ends_before_the_pod_is_killed(pod: Any, container: Any) -> None:
    _, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert pod["terminationGracePeriodSeconds"] > int(seconds) + DRAIN_SECONDS


def test_the_manifest_starts_what_the_image_has(manifests: dict[str, Any], pod: Any, container: Any) -> None:
    (command,) = instructions("CMD")
    assert container["args"] == json.loads(command)
    assert instructions("EXPOSE") == [PORT]
    (user,) = instructions("USER")
    assert user == f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
    assert container["volumeMounts"] == [{"name": pod["volumes"][0]["name"], "mountPath": "/bundles", "readOnly": True}]
    spec = manifests["Deployment"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert labels == spec["selector"]["matchLabels"] == manifests["Service"]["spec"]["selector"]
    (port,) = manifests["Service"]["spec"]["ports"]
    assert port["targetPort"] == container["ports"][0]["name"]
    assert container["securityContext"]["readOnlyRootFilesystem"]


def test_the_server_has_every_option_that_it_is_started_with() -> None:
    (command,) = instructions("CMD")
    subcommand, *arguments = json.loads(command)
    told = run_module("serving", subcommand, "--help").stdout
    for option in (argument for argument in arguments if argument.startswith("--")):
        assert f"{option} " in told


def command(*arguments: str) -> int:
    return main(Serving, "python -m serving", arguments, refusals=(UsageError, ServingError))


def test_health_says_whether_a_server_serves(server: str, refused: Callable[[int], str]) -> None:
    assert command("health", "--address", server) == 0
    assert command("health", "--address", server, "--service", NAME, "--json") == 0
    assert "NOT_FOUND" in refused(command("health", "--address", server, "--service", "other"))
    assert "UNAVAILABLE" in refused(command("health", "--address", "127.0.0.1:1"))


def test_health_fails_where_a_server_takes_no_requests(refused: Callable[[int], str]) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert "NOT_SERVING" in refused(command("health", "--address", f"127.0.0.1:{port}"))
    finally:
        server.stop(None)


@pytest.fixture
def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@pytest.mark.slow
def test_what_the_dockerfile_runs_serves_and_stops(bundles: Path, tmp_path: Path, free_port: str) -> None:
    """COPY, RUN, ENV, CMD and HEALTHCHECK in a fresh environment; only the base image and the user are not tried."""
    image = tmp_path / "image"
    for line in instructions("COPY"):
        *sources, target = shlex.split(line)
        for source in sources:
            place = image / target.strip("/") / (source if target.endswith("/") else "")
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, place)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    outside = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    path = {"PATH": f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}"}
    inside = outside | path | dict(pair.split("=") for line in instructions("ENV") for pair in line.split())

    def placed(shell: str) -> str:
        return (
            shell.replace("/source", str(image / "source")).replace("/bundles", str(bundles)).replace(PORT, free_port)
        )

    for line in instructions("RUN"):
        subprocess.run(placed(line), shell=True, check=True, env=inside, cwd=tmp_path)
    assert not (image / "source").exists()
    assert "torch" not in subprocess.run(["pip", "list"], capture_output=True, text=True, check=True, env=inside).stdout

    (entry,), (arguments,), (check,) = (instructions(name) for name in ("ENTRYPOINT", "CMD", "HEALTHCHECK"))
    probe = placed(check[check.index("CMD ") + 4 :])

    def healthy() -> int:
        return subprocess.run(probe, shell=True, check=False, env=inside, cwd=tmp_path, capture_output=True).returncode

    assert healthy() == 1
    server = subprocess.Popen(json.loads(placed(entry)) + json.loads(placed(arguments)), env=inside, cwd=tmp_path)
    try:
        for _ in range(60):
            if healthy() == 0:
                break
            time.sleep(0.5)
        assert healthy() == 0
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=DRAIN_SECONDS) == 0
    finally:
        server.kill()
        server.wait()
