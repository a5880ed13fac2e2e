"""esr.v1.AdminService of one process: from messages to its versions and back."""

import asyncio
from pathlib import Path
from typing import Any

import grpc

from serving.choice import keep
from serving.errors import InvalidRequestError
from serving.versions import Versions, VersionStatus
from serving.wire import admin_pb2, admin_pb2_grpc

ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name


class AdminService(admin_pb2_grpc.AdminServiceServicer):  # type: ignore[misc]
    """Lists, loads, activates and rolls back the versions of one process."""

    def __init__(self, versions: Versions, choice_file: Path | None = None) -> None:
        self.versions = versions
        self.choice_file = choice_file
        self._keeping = asyncio.Lock()

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
        await self._keep_choice()
        return admin_pb2.ActivateVersionResponse(version=message(status))

    async def RollBack(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Switch back to the version before."""
        status = await asyncio.to_thread(self.versions.roll_back)
        await self._keep_choice()
        return admin_pb2.RollBackResponse(version=message(status))

    async def _keep_choice(self) -> None:
        async with self._keeping:  # what is written last is what was chosen last
            await asyncio.to_thread(keep, self.choice_file, self.versions.chosen)


def message(status: VersionStatus) -> Any:
    """One version on the wire."""
    return admin_pb2.Version(
        version=status.version,
        state=f"VERSION_STATE_{status.state.name}",
        model_id=status.model_id,
        problem=status.problem,
    )
