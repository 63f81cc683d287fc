"""The service grpc.health.v1.Health.

Written anew since the one of grpcio-health-checking writes to its watchers under a lock that a change of state needs
too: one watcher that does not read would keep the server from going down.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc

SERVICE = pb.DESCRIPTOR.services_by_name["Health"].full_name
MAX_WATCHERS = 1000
type ServingStatus = Any
"""A value of pb.HealthCheckResponse.ServingStatus."""


class HealthService(health_pb2_grpc.HealthServicer):
    """SERVING while calls are taken, for the server as a whole ("") and for each service.

    Args:
        serving: whether calls are taken; whoever knows that it has changed calls `tell`.
        services: full names of those that have a health; more may be added.
    """

    def __init__(self, serving: Callable[[], bool], services: Iterable[str]) -> None:
        self._serving = serving
        self.services = {"", *services}
        self._leaving = False
        self._changes: set[asyncio.Event] = set()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Lets a server answer for it."""
        health_pb2_grpc.add_HealthServicer_to_server(self, server)

    def leave(self) -> None:
        """NOT_SERVING from now on, and watchers are let go: the server goes down."""
        self._leaving = True
        self.tell()

    def status(self, service: str) -> ServingStatus:
        """Of one service."""
        if service not in self.services:
            return pb.HealthCheckResponse.SERVICE_UNKNOWN
        serving = self._serving() and not self._leaving
        return pb.HealthCheckResponse.SERVING if serving else pb.HealthCheckResponse.NOT_SERVING

    async def Check(self, request: pb.HealthCheckRequest, context: Any) -> pb.HealthCheckResponse:
        status = self.status(request.service)
        if status == pb.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service[:100]!r}")
        return pb.HealthCheckResponse(status=status)

    async def Watch(self, request: pb.HealthCheckRequest, context: Any) -> None:
        """The status now, and each time it is another one. A service that is not known may become so."""
        if len(self._changes) >= MAX_WATCHERS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"there are {MAX_WATCHERS} watchers already")
        changed = asyncio.Event()
        self._changes.add(changed)
        try:
            last = None
            while True:
                changed.clear()
                status = self.status(request.service)
                if status != last:
                    await context.write(pb.HealthCheckResponse(status=status))
                    last = status
                if self._leaving:
                    return
                await changed.wait()
        finally:
            self._changes.discard(changed)

    def tell(self) -> None:
        """Watchers look again."""
        for changed in self._changes:
            changed.set()
