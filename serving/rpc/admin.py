"""The service distaff.v1.Admin."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import grpc

from ...backends.errors import InvalidParameterError
from ..front import Front, State
from .failures import Context
from .profiler import Profiler
from .protos.distaff.v1 import admin_pb2 as pb
from .protos.distaff.v1 import admin_pb2_grpc

SERVICE = pb.DESCRIPTOR.services_by_name["Admin"].full_name
STATES: dict[State, Any] = {state: getattr(pb, f"SERVER_STATE_{state.name}") for state in State}


class AdminService(admin_pb2_grpc.AdminServicer):
    """
    Args:
        front: what is served.
        services: full names of the services on this port.
        drain: begins the end of the server, with seconds for what runs (None: its own).
        profiler: makes traces.
    """

    def __init__(
        self, front: Front, *, services: Sequence[str], drain: Callable[[float | None], None], profiler: Profiler
    ) -> None:
        self._front = front
        self._services = services
        self._drain = drain
        self._profiler = profiler
        self._started = time.monotonic()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Lets a server answer for it."""
        admin_pb2_grpc.add_AdminServicer_to_server(self, server)

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        return pb.GetServerInfoResponse(
            version=version("distaff"),
            state=STATES[self._front.state],
            uptime_seconds=time.monotonic() - self._started,
            warm=self._front.engine.is_warm,
            services=self._services,
        )

    async def GetLoad(self, request: pb.GetLoadRequest, context: Context) -> pb.GetLoadResponse:
        load = self._front.load()
        return pb.GetLoadResponse(
            waiting=load.waiting,
            running=load.running,
            tokens_in_flight=load.tokens_in_flight,
            pages_used=load.pages_used,
            pages_total=load.pages_total,
            max_batch=load.max_batch,
        )

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:
        grace = request.grace_seconds if request.HasField("grace_seconds") else None
        if grace is not None and not (math.isfinite(grace) and grace >= 0):
            raise InvalidParameterError("grace_seconds", grace, "seconds, 0 or more")
        self._drain(grace)
        return pb.DrainResponse()

    async def FlushPrefixCache(
        self, request: pb.FlushPrefixCacheRequest, context: Context
    ) -> pb.FlushPrefixCacheResponse:
        return pb.FlushPrefixCacheResponse(pages_freed=await self._front.forget_prefixes())

    async def StartProfile(self, request: pb.StartProfileRequest, context: Context) -> pb.StartProfileResponse:
        self._profiler.start()
        return pb.StartProfileResponse()

    async def StopProfile(self, request: pb.StopProfileRequest, context: Context) -> pb.StopProfileResponse:
        await asyncio.get_running_loop().run_in_executor(None, self._profiler.stop)  # it writes the trace
        return pb.StopProfileResponse()
