"""Who may call a real server: certificates and tokens made for the test."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.security import is_loopback, read_token
from serving.server_options import OptionError
from serving.wire import retrieval_pb2_grpc
from tests.conftest import run_module, started
from tests.serving.live import REQUEST, retrieval

TOKEN = "a-token-that-is-long-enough"


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def authority(directory: Path, name: str) -> None:
    """<name>.pem and <name>.key of a certificate authority."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", directory / f"{name}.key")
    openssl("req", "-x509", *key, "-out", directory / f"{name}.pem", "-subj", f"/CN={name}", "-days", 2)


def certificate(directory: Path, name: str, by: str) -> None:
    """<name>.pem and <name>.key for localhost, signed by an authority."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", directory / f"{name}.key")
    openssl("req", *key, "-out", directory / f"{name}.csr", "-subj", f"/CN={name}")
    (directory / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    signed_by = ("-CA", directory / f"{by}.pem", "-CAkey", directory / f"{by}.key", "-CAcreateserial", "-days", 2)
    request = ("-in", directory / f"{name}.csr", "-out", directory / f"{name}.pem", "-extfile", directory / "names")
    openssl("x509", "-req", *request, *signed_by)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates")
    for name in ("ours", "theirs"):
        authority(directory, name)
    for name, by in (("server", "ours"), ("client", "ours"), ("stranger", "theirs")):
        certificate(directory, name, by)
    (directory / "token").write_text(TOKEN)
    return directory


def tls(files: Path, trusted: str = "ours", client: str | None = None) -> grpc.ChannelCredentials:
    pair = [(files / f"{client}.{kind}").read_bytes() for kind in ("key", "pem")] if client else [None, None]
    return grpc.ssl_channel_credentials((files / f"{trusted}.pem").read_bytes(), *pair)


def ask(channel: grpc.Channel, metadata: list[tuple[str, str]] | None = None) -> grpc.StatusCode:
    """The status of a Retrieve."""
    try:
        answer = retrieval_pb2_grpc.RetrievalServiceStub(channel).Retrieve(REQUEST, timeout=10, metadata=metadata)
        assert len(answer.item_ids) == 10
        return grpc.StatusCode.OK
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code


@pytest.fixture(scope="module")
def guarded(bundles: Path, files: Path) -> Iterator[str]:
    """A server with TLS and a token."""
    options = (
        "--tls-certificate",
        files / "server.pem",
        "--tls-key",
        files / "server.key",
        "--token-file",
        files / "token",
    )
    with started(bundles, *map(str, options)) as (_, facts):
        yield facts["address"]


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        ([("authorization", f"Bearer {TOKEN}")], grpc.StatusCode.OK),
        ([], grpc.StatusCode.UNAUTHENTICATED),
        ([("authorization", TOKEN)], grpc.StatusCode.UNAUTHENTICATED),
        ([("authorization", f"Bearer {TOKEN}x")], grpc.StatusCode.UNAUTHENTICATED),
        ([("authorization", f"Bearer {TOKEN}")] * 2, grpc.StatusCode.UNAUTHENTICATED),
    ],
)
def test_a_call_needs_the_token(
    metadata: list[tuple[str, str]], code: grpc.StatusCode, guarded: str, files: Path
) -> None:
    with grpc.secure_channel(guarded, tls(files)) as channel:
        assert ask(channel, metadata) is code


def test_a_call_without_the_token_is_refused_before_its_message_is_parsed(guarded: str, files: Path) -> None:
    with grpc.secure_channel(guarded, tls(files)) as channel:
        for method, code in (("Retrieve", "UNAUTHENTICATED"), ("NoSuchMethod", "UNIMPLEMENTED")):
            with pytest.raises(grpc.RpcError) as raised:
                channel.unary_unary(f"/esr.v1.RetrievalService/{method}")(b"\xff\xff\xff", timeout=10)
            assert raised.value.code().name == code


def test_health_needs_no_token(guarded: str, files: Path) -> None:
    with grpc.secure_channel(guarded, tls(files)) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_tls_turns_away_plain_text_and_shows_its_certificate(guarded: str, files: Path) -> None:
    with grpc.insecure_channel(guarded) as channel:
        assert ask(channel, [("authorization", f"Bearer {TOKEN}")]) is grpc.StatusCode.UNAVAILABLE
    with grpc.secure_channel(guarded, tls(files, trusted="theirs")) as channel:
        assert ask(channel) is grpc.StatusCode.UNAVAILABLE


def test_mutual_tls_takes_only_clients_of_its_authority(bundles: Path, files: Path) -> None:
    options = ("--tls-certificate", files / "server.pem", "--tls-key", files / "server.key")
    with started(bundles, *map(str, options), "--tls-client-ca", str(files / "ours.pem")) as (_, facts):
        for client, code in (("client", "OK"), (None, "UNAVAILABLE"), ("stranger", "UNAVAILABLE")):
            with grpc.secure_channel(facts["address"], tls(files, client=client)) as channel:
                assert ask(channel).name == code, client


def test_options_that_would_not_protect_are_one_line(bundles: Path, files: Path) -> None:
    certificate, key = ("--tls-certificate", files / "server.pem"), ("--tls-key", files / "server.key")
    for options, why in (
        (certificate, "needs both tls-certificate and tls-key"),
        ((*certificate, "--tls-key", files / "client.key"), "cannot be used"),
        ((*certificate, *key, "--tls-client-ca", files / "token"), "cannot be used"),
        (("--token-file", files / "nothing"), "cannot be read"),
    ):
        done = run_module("serving", "serve", bundles, "--port", "0", *options)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert why in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "content", ["", "short", "two words of one token", "nön-ascii-and-long", "line\nline-and-more"]
)
def test_a_token_must_be_one_long_word(content: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(content)
    with pytest.raises(OptionError, match="token file"):
        read_token(tmp_path / "token")


def test_an_open_address_without_protection_is_warned_of(bundles: Path) -> None:
    with started(bundles, "--host", "0.0.0.0") as (process, _):
        process.terminate()
        errors = process.communicate()[1]
    assert "warning: host (0.0.0.0) is open to other machines without TLS and a token" in errors
    assert [
        is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "10.0.0.1", "example.org")
    ] == [
        *[True] * 3,
        *[False] * 4,
    ]


def test_onnx_runtime_reports_to_nobody(bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where it keeps the id under which it does
    with started(bundles) as (_, facts):
        assert len(retrieval(facts["address"]).Retrieve(REQUEST, timeout=10).item_ids) == 10
        assert list(tmp_path.iterdir()) == []
