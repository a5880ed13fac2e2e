"""esr.v1.AdminService of one process: from messages to its versions and back."""

import asyncio
from typing import Any

import grpc

from serving.errors import InvalidRequestError
from serving.versions import Versions, VersionStatus
from serving.wire import admin_pb2, admin_pb2_grpc

ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name


class AdminService(admin_pb2_grpc.AdminServiceServicer):  # type: ignore[misc]
    """Lists, loads, activates and rolls back the versions of one process."""

    def __init__(self, versions: Versions) -> None:
        self.versions = versions

    async def ListVersions(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """List the versions under the bundle root."""
        states = await asyncio.to_thread(self.versions.states)
        active, previous = self.versions.active, self.versions.previous
        return admin_pb2.ListVersionsResponse(
            versions=[message(status) for status in states],
            active_version=active.bundle.version if active else 0,
            previous_version=previous.bundle.version if previous else 0,
            follows_latest=self.versions.chosen.follows_latest,
        )

    async def LoadVersion(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Load a version beside the active one."""
        if not request.version:
            raise InvalidRequestError("version", "(0) must be at least 1")
        status = await asyncio.to_thread(self.versions.load, request.version)
        return admin_pb2.LoadVersionResponse(version=message(status))

    async def ActivateVersion(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Switch to a version."""
        status = await asyncio.to_thread(self.versions.activate, request.version, request.follow_latest)
        return admin_pb2.ActivateVersionResponse(version=message(status))

    async def RollBack(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Switch back to the version before."""
        return admin_pb2.RollBackResponse(version=message(await asyncio.to_thread(self.versions.roll_back)))


def message(status: VersionStatus) -> Any:
    """One version on the wire."""
    return admin_pb2.Version(
        version=status.version,
        state=f"VERSION_STATE_{status.state.name}",
        model_id=status.model_id,
        problem=status.problem,
    )
