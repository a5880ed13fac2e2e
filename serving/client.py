"""A client of a server: retrieval, health and versions, each one call on a connection of its own."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.errors import NotServingError, ServingError
from serving.query import Answer
from serving.wire import admin_pb2, admin_pb2_grpc, retrieval_pb2, retrieval_pb2_grpc


class CallError(ServingError):
    """The server refused, or could not be reached."""


class Connection(NamedTuple):
    """How to reach a server."""

    address: str
    """`host:port`."""
    seconds: float = 5.0
    """The call's deadline, connecting included."""
    tls_ca: Path | None = None
    """PEM file of the authorities that the server's certificate comes from; None: no TLS."""
    token_file: Path | None = None
    """File with the bearer token; None: none is sent."""

    def call(self, ask: Callable[..., Any], request: Any) -> Any:
        """One call.

        Args:
            ask: channel -> the stub's method.
            request: its message.

        Raises:
            CallError: one line with the status and the server's message.
        """
        token = self.token_file.read_text().strip() if self.token_file else ""
        metadata = [("authorization", f"Bearer {token}")] if token else []
        with self.channel() as channel:
            try:
                return ask(channel)(request, timeout=self.seconds, metadata=metadata)
            except grpc.RpcError as error:
                raise CallError(f"{error.code().name} from {self.address}: {error.details()}") from error

    def channel(self) -> grpc.Channel:
        """A new connection."""
        if self.tls_ca is None:
            return grpc.insecure_channel(self.address)
        return grpc.secure_channel(self.address, grpc.ssl_channel_credentials(self.tls_ca.read_bytes()))


def retrieve(address: str, context_id: str, num_candidates: int, seconds: float = 5.0) -> tuple[Answer, str, int]:
    """Ask a server for the candidates of one context.

    Args:
        address: `host:port`.
        context_id: the context's own id.
        num_candidates: how many.
        seconds: the call's deadline, connecting included.

    Returns:
        The candidates, the model's id, and the bundle's version.

    Raises:
        CallError: one line with the status and the server's message.
    """
    response = retrieve_response(Connection(address, seconds), context_id, num_candidates)
    answer = Answer(list(response.item_ids), list(response.scores), list(response.experts))
    return answer, response.model_id, response.model_version


def retrieve_response(
    connection: Connection,
    context_id: str,
    num_candidates: int,
    num_slots: int = 0,
    excluded: Sequence[str] = (),
    seed: int | None = None,
) -> Any:
    """The whole RetrieveResponse of one context, drawn if there is a seed.

    Raises:
        CallError: one line with the status and the server's message.
    """
    try:
        request = retrieval_pb2.RetrieveRequest(
            context_id=context_id,
            num_candidates=num_candidates,
            num_slots=num_slots,
            excluded_item_ids=excluded,
            sampling=None if seed is None else retrieval_pb2.Sampling(seed=seed),
        )
    except ValueError as error:  # not UTF-8, or not an unsigned 32-bit integer
        raise CallError(f"context_id ({context_id!a}) or num_candidates ({num_candidates}) cannot be sent") from error
    return connection.call(lambda channel: retrieval_pb2_grpc.RetrievalServiceStub(channel).Retrieve, request)


def record_feedback(connection: Connection, request: Any) -> bool:
    """Send a RecordFeedbackRequest; whether it is new.

    Raises:
        CallError: one line with the status and the server's message.
    """
    stub = retrieval_pb2_grpc.RetrievalServiceStub
    return bool(connection.call(lambda channel: stub(channel).RecordFeedback, request).is_new)


def check_serving(connection: Connection, service: str) -> None:
    """Ask a server once, by grpc.health.v1, whether a service serves.

    Args:
        connection: how to reach it.
        service: the health service's name for it; empty: the server.

    Raises:
        NotServingError: it does not serve, is unknown, or cannot be reached; one line says which.
    """
    request = health_pb2.HealthCheckRequest(service=service)
    try:
        status = connection.call(lambda channel: health_pb2_grpc.HealthStub(channel).Check, request).status
    except CallError as error:
        raise NotServingError(str(error)) from error
    if status != health_pb2.HealthCheckResponse.SERVING:
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
        raise NotServingError(f"{name} from {connection.address}: {service or 'the server'} takes no requests")


def list_versions(connection: Connection) -> Any:
    """AdminService.ListVersions."""
    return connection.call(
        lambda channel: admin_pb2_grpc.AdminServiceStub(channel).ListVersions, admin_pb2.ListVersionsRequest()
    )


def load_version(connection: Connection, version: int) -> Any:
    """AdminService.LoadVersion: the version as it is then."""
    request = admin_pb2.LoadVersionRequest(version=version)
    return connection.call(lambda channel: admin_pb2_grpc.AdminServiceStub(channel).LoadVersion, request).version


def activate_version(connection: Connection, version: int, follow_latest: bool) -> Any:
    """AdminService.ActivateVersion: the version as it is then."""
    request = admin_pb2.ActivateVersionRequest(version=version, follow_latest=follow_latest)
    return connection.call(lambda channel: admin_pb2_grpc.AdminServiceStub(channel).ActivateVersion, request).version


def roll_back(connection: Connection) -> Any:
    """AdminService.RollBack: the version as it is then."""
    return connection.call(
        lambda channel: admin_pb2_grpc.AdminServiceStub(channel).RollBack, admin_pb2.RollBackRequest()
    ).version


def version_facts(version: Any) -> dict[str, Any]:
    """A version for people."""
    return {
        "version": version.version,
        "state": admin_pb2.VersionState.Name(version.state).removeprefix("VERSION_STATE_").lower(),
        "model_id": version.model_id,
        "problem": version.problem,
    }
