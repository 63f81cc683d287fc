"""The gRPC server: one port, its services, and who may call them."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import grpc
from grpc_channelz.v1 import channelz
from grpc_reflection.v1alpha import reflection

from ...backends.errors import DistaffError
from ..front import Front, State
from ..telemetry.orca import LoadReport
from ..tls_files import TlsFiles
from . import admin, health
from .guard import Authenticate, Guard
from .profiler import Profiler
from .services import Service, services
from .settings import RpcSettings
from .tls import server_credentials

_LAST_SECONDS = 1.0
"""For answers that are on their way when the server stops."""

# A peer that breaks off is everyday life, and grpc tells each as an error.
logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)


class RpcServer:
    """
    Args:
        front: what serves the calls.
        settings: where it listens, and the limits of the transport.
        tls: None: without.
        authenticate: who a token belongs to; None lets everybody in.
        open_admin: whether the Admin service is for callers without a token too, where nobody needs one.
        drain: what Admin.Drain does, with its seconds (None: the server's own).
        profile_dir: where Admin.StartProfile leaves traces.

    Attributes:
        port: where it listens, once it was started.
        health: what its health service tells.
    """

    def __init__(
        self,
        front: Front,
        settings: RpcSettings | None = None,
        *,
        tls: TlsFiles | None = None,
        authenticate: Authenticate | None = None,
        open_admin: bool = False,
        drain: Callable[[float | None], None] = lambda grace: None,
        profile_dir: Path | None = None,
    ) -> None:
        self.settings = settings or RpcSettings()
        self.port = self.settings.port
        self._tls = tls
        profiler = Profiler(profile_dir)
        served = services(front, profiler)
        self._names = [*served, admin.SERVICE]
        self.health = health.HealthService(lambda: front.state is State.READY, self._names)
        front.on_state(lambda _: self.health.tell())
        self.guard = Guard(
            authenticate,
            open_admin=open_admin,
            report=lambda: LoadReport.of(front).to_bytes(),
            count=lambda kind: front.counters.refused.update((kind,)),
            max_rpcs=self.settings.max_rpcs,
        )
        self._server = grpc.aio.server(
            interceptors=[self.guard],
            options=self.settings.arguments(),
            maximum_concurrent_rpcs=self.settings.max_rpcs + 2 * health.MAX_WATCHERS,
        )
        for service in served.values():
            service.add_to(self._server)
        self.add(admin.AdminService(front, services=self._names, drain=drain, profiler=profiler))
        self.add(self.health)
        if self.settings.channelz:
            channelz.add_channelz_servicer(self._server)

    def add(self, service: Service, *names: str) -> None:
        """Lets it answer for a service more, before it starts. `names` are those that reflection and health tell."""
        service.add_to(self._server)
        self._names += names
        self.health.services.update(names)

    async def start(self) -> None:
        """Listens.

        Raises:
            DistaffError: the address is taken, or none of this machine.
        """
        if self.settings.reflection:
            reflection.enable_server_reflection([*self._names, health.SERVICE, reflection.SERVICE_NAME], self._server)
        address = self.settings.address
        try:
            if self._tls is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, server_credentials(self._tls))
        except RuntimeError as error:
            raise DistaffError(f"cannot listen on {address}: is it taken? Port 0 takes a free one") from error
        await self._server.start()

    async def stop(self) -> None:
        """Stops listening and cuts what is left, after `health.leave` and Front.drain have come to their ends."""
        self.health.leave()
        await asyncio.sleep(0)
        await self._server.stop(_LAST_SECONDS)
