"""esr.v1.AdminService of several workers: each is asked over its private socket, and one answer speaks for all."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

import grpc

from serving.choice import Chosen, keep
from serving.errors import BundleUnusableError, NotServingError
from serving.wire import admin_pb2, admin_pb2_grpc


class Workers(Protocol):
    """What a supervisor knows of its workers."""

    def sockets(self) -> list[Path]:
        """Where the workers that serve are asked."""

    def choose(self, chosen: Chosen) -> None:
        """Have workers that start from now on serve what an operator chose."""


class FanOutAdminService(admin_pb2_grpc.AdminServiceServicer):  # type: ignore[misc]
    """esr.v1.AdminService over all workers: they switch once every one of them has the version in memory."""

    def __init__(self, supervisor: Workers, choice_file: Path | None) -> None:
        self.supervisor = supervisor
        self.choice_file = choice_file
        self._changing = asyncio.Lock()

    async def ListVersions(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """List the versions as the worker that is behind the others knows them."""
        answers = await self._ask_all("ListVersions", request, context)
        return min(answers, key=lambda answer: answer.active_version)

    async def LoadVersion(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Load a version in every worker."""
        return (await self._ask_all("LoadVersion", request, context))[0]

    async def ActivateVersion(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Load a version in every worker; when all have it, switch."""
        async with self._changing:
            listing = await self.ListVersions(admin_pb2.ListVersionsRequest(), context)
            highest = max((version.version for version in listing.versions), default=0)
            chosen = Chosen(request.version or highest, request.follow_latest, highest)
            return await self._switch(chosen, context)

    async def RollBack(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Switch every worker to the version that was active before."""
        async with self._changing:
            listing = await self.ListVersions(admin_pb2.ListVersionsRequest(), context)
            if not listing.previous_version:
                raise BundleUnusableError("no version was active before this one")
            answer = await self._switch(Chosen(listing.previous_version, follows_latest=False), context)
            return admin_pb2.RollBackResponse(version=answer.version)

    async def _switch(self, chosen: Chosen, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        await self._ask_all("LoadVersion", admin_pb2.LoadVersionRequest(version=chosen.version), context)
        self.supervisor.choose(chosen)  # a worker that dies from here on comes back with it
        answer = (await self._ask_all("ActivateVersion", activation(chosen), context))[0]
        await asyncio.to_thread(keep, self.choice_file, chosen)
        return answer

    async def _ask_all(self, method: str, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> list[Any]:
        """Every serving worker's answer to one method; the first refusal is the answer for all."""
        calls = (ask(socket, method, request) for socket in self.supervisor.sockets())
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for answer in answers:
            if isinstance(answer, grpc.aio.AioRpcError) and answer.code() is not grpc.StatusCode.UNAVAILABLE:
                await context.abort(answer.code(), answer.details() or "", tuple(answer.trailing_metadata()))
        # A worker that could not be reached has died just now: it comes back with what was chosen.
        living = [answer for answer in answers if not isinstance(answer, BaseException)]
        if not living:
            raise NotServingError("no worker answers")
        return living


def activation(chosen: Chosen) -> Any:
    """What tells a worker an operator's choice."""
    return admin_pb2.ActivateVersionRequest(version=chosen.version, follow_latest=chosen.follows_latest)


async def ask(socket: Path, method: str, request: Any) -> Any:
    """One call of one worker's admin service."""
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        call: Callable[[Any], Coroutine[Any, Any, Any]] = getattr(admin_pb2_grpc.AdminServiceStub(channel), method)
        return await call(request)
