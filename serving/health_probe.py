"""One grpc.health.v1 check, for whoever cannot ask over gRPC: a container's health check, a shell."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.errors import NotServingError


def check_serving(address: str, service: str, seconds: float) -> None:
    """Ask a server once whether a service serves.

    Args:
        address: `host:port`.
        service: the health service's name for it; empty: the server.
        seconds: the call's deadline, connecting included.

    Raises:
        NotServingError: it does not serve, is unknown, or cannot be reached; one line says which.
    """
    with grpc.insecure_channel(address) as channel:
        try:
            request = health_pb2.HealthCheckRequest(service=service)
            status = health_pb2_grpc.HealthStub(channel).Check(request, timeout=seconds).status
        except grpc.RpcError as error:
            raise NotServingError(f"{error.code().name} from {address}: {error.details()}") from error
    if status != health_pb2.HealthCheckResponse.SERVING:
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
        raise NotServingError(f"{name} from {address}: {service or 'the server'} takes no requests")
