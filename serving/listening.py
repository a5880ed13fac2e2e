"""gRPC servers and the metrics endpoint: made, bound to their addresses, and stopped."""

import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc
import prometheus_client
from grpc_reflection.v1alpha import reflection

from serving.admin_service import ADMIN
from serving.errors import ServingError
from serving.gate import Gate
from serving.reports import Reports
from serving.security import BearerToken, credentials, read_token
from serving.server_options import ServerOptions
from serving.telemetry import Guard, Telemetry
from serving.wire import admin_pb2_grpc

CHANNEL = (
    ("grpc.max_concurrent_streams", 1024),  # of one connection; admission is what turns calls away
    ("grpc.keepalive_time_ms", 60_000),  # a client that vanished is noticed
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),  # clients may ask as often
)


class AddressInUseError(ServingError):
    """Another process listens on the address."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"address ({joined(host, port)}) cannot be listened on: is the port in use?")


def joined(host: str, port: int) -> str:
    """`host:port`, IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def new_server(
    options: ServerOptions, reports: Reports, gate: Gate, token_file: Path | None, shares_port: bool = False
) -> grpc.aio.Server:
    """A server whose calls are timed, counted, reported, and let in by a gate and the file's token if there is one."""
    token = read_token(token_file)
    return grpc.aio.server(
        interceptors=[Telemetry(reports, gate), *([BearerToken(token)] if token else [])],
        options=[
            *CHANNEL,
            # Linux would let a second server share the port and take half of the requests: that is an error here.
            ("grpc.so_reuseport", int(shares_port)),
            ("grpc.max_receive_message_length", options.max_message_bytes),
        ],
    )


def bind(server: grpc.aio.Server, options: ServerOptions, host: str, port: int, names: Sequence[str]) -> str:
    """Bind a server to an address, with TLS and reflection as the options say; its `host:port`.

    Raises:
        AddressInUseError: the address is taken, or is not this machine's.
        OptionError: the certificates cannot be used.
    """
    if options.reflection:
        reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)
    tls = credentials(options)
    address = joined(host, port)
    try:
        bound = server.add_secure_port(address, tls) if tls else server.add_insecure_port(address)
    except RuntimeError as error:
        raise AddressInUseError(host, port) from error
    return joined(host, bound)


@asynccontextmanager
async def administration(
    options: ServerOptions, reports: Reports, service: admin_pb2_grpc.AdminServiceServicer
) -> AsyncIterator[str]:
    """esr.v1.AdminService on the options' admin port within the block: its address, empty if it is off."""
    if options.admin_port is None:
        yield ""
        return
    server = new_server(options, reports, Gate(), options.admin_token_file)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(service, server)
    address = bind(server, options, options.admin_host, options.admin_port, [ADMIN])
    await server.start()
    try:
        yield address
    finally:
        await server.stop(1.0)


@asynccontextmanager
async def private_administration(path: Path, service: admin_pb2_grpc.AdminServiceServicer) -> AsyncIterator[None]:
    """esr.v1.AdminService on a Unix socket within the block: who may enter the socket's directory may call it."""
    server = grpc.aio.server(interceptors=[Guard()])
    admin_pb2_grpc.add_AdminServiceServicer_to_server(service, server)
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(1.0)


@contextmanager
def metrics_endpoint(options: ServerOptions, registry: prometheus_client.CollectorRegistry) -> Iterator[str]:
    """Prometheus's page over HTTP within the block: its address, empty if it is off."""
    if options.metrics_port is None:
        yield ""
        return
    host = options.metrics_host
    try:
        server, thread = prometheus_client.start_http_server(options.metrics_port, host, registry)
    except OSError as error:
        raise AddressInUseError(host, options.metrics_port) from error
    try:
        yield joined(host, server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def reserve(host: str, port: int) -> socket.socket:
    """Hold a port for the processes that will share it; 0 takes a free one. Others cannot listen on it meanwhile.

    The first bind refuses to share, so it fails if anybody listens there; then the socket opens to SO_REUSEPORT. It
    never listens itself, so the kernel hands it no connection.

    Raises:
        AddressInUseError: the address is taken, or is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        held = socket.socket(family, kind, protocol)
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # past connections in TIME_WAIT are no owners
            held.bind(address)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except OSError:
            held.close()
            raise
    except OSError as error:
        raise AddressInUseError(host, port) from error
    return held
