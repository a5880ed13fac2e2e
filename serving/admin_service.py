"""esr.v1.AdminService of one process: from messages to its versions and back."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import grpc

from serving.errors import InvalidRequestError, ServingError
from serving.service import refuse
from serving.versions import Versions, VersionStatus
from serving.wire import admin_pb2, admin_pb2_grpc

ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name

Result = TypeVar("Result")


class AdminService(admin_pb2_grpc.AdminServiceServicer):  # type: ignore[misc]
    """Lists, loads, activates and rolls back the versions of one process."""

    def __init__(self, versions: Versions) -> None:
        self.versions = versions

    async def ListVersions(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """List the versions under the bundle root."""
        states = await in_thread(context, self.versions.states)
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
            await refuse(context, InvalidRequestError("version", "(0) must be at least 1"))
        status = await in_thread(context, lambda: self.versions.load(request.version))
        return admin_pb2.LoadVersionResponse(version=message(status))

    async def ActivateVersion(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Switch to a version."""
        status = await in_thread(context, lambda: self.versions.activate(request.version, request.follow_latest))
        return admin_pb2.ActivateVersionResponse(version=message(status))

    async def RollBack(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Switch back to the version before."""
        return admin_pb2.RollBackResponse(version=message(await in_thread(context, self.versions.roll_back)))


async def in_thread(context: grpc.aio.ServicerContext[Any, Any], work: Callable[[], Result]) -> Result:
    """Work beside the event loop; a refusal ends the call."""
    try:
        return await asyncio.to_thread(work)
    except ServingError as error:
        await refuse(context, error)


def message(status: VersionStatus) -> Any:
    """One version on the wire."""
    return admin_pb2.Version(
        version=status.version,
        state=f"VERSION_STATE_{status.state.name}",
        model_id=status.model_id,
        problem=status.problem,
    )
