"""grpc.health.v1: whether the server lives and whether it should be sent requests, by Check and by Watch.

The servicer that comes with grpcio-health-checking loses every other watcher of a service when one leaves, and its
watchers hold a server's stop for the whole grace; this one's watches end when the server drains.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

LIVENESS = "liveness"
"""The service name that is SERVING from the first moment to the last, also while loading and draining."""

Status = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The statuses of some services; every other name is unknown."""

    def __init__(self, *services: str) -> None:
        self._services = services
        self._statuses = {LIVENESS: Status.SERVING, **dict.fromkeys(services, Status.NOT_SERVING)}
        self._changed = asyncio.Event()
        self._is_ending = False

    @property
    def is_ready(self) -> bool:
        """Whether the services should be sent requests."""
        return all(self._statuses[service] == Status.SERVING for service in self._services)

    def set(self, is_ready: bool) -> None:
        """Say whether the services should be sent requests."""
        self._statuses |= dict.fromkeys(self._services, Status.SERVING if is_ready else Status.NOT_SERVING)
        self._wake()

    def end_watches(self) -> None:
        """End every Watch, present and future, after its last status: a drain does not wait for them."""
        self._is_ending = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """The status of a service now; NOT_FOUND if there is none of that name."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return Status(status=status)

    async def Watch(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        """The status of a service now, and whenever it changes."""
        told = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, Status.SERVICE_UNKNOWN)
            if status != told:
                yield Status(status=status)
            told = status
            if changed is not self._changed:
                continue
            if self._is_ending:
                return
            await changed.wait()
