"""The router as a server: its port, its own health, its end."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Mapping, Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ...backends.errors import DistaffError
from ..client.target import Target
from ..rpc.settings import RpcSettings
from ..rpc.tls import TlsFiles, server_credentials
from .prefix_map import PrefixMap
from .proxy import Proxy, Reader
from .upstream import Poll, Upstream

_HEALTH_SECONDS = 1.0  # a watcher that does not read keeps nobody from shutting down
_FORCED = 128 + signal.SIGTERM


class Router:
    """Fronts several servers. Use it as an async context manager.

    Args:
        targets: the servers.
        settings, tls: where it listens, and how.
        readers: how to find the prompt in a request, for each method that has one.
        everywhere: methods whose calls go to all servers; each joins their answers into one.
        poll: asks a server how busy it is.
        services: names that its health knows, besides "".

    Attributes:
        port: where it listens, once entered.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        *,
        settings: RpcSettings | None = None,
        tls: TlsFiles | None = None,
        readers: Mapping[str, Reader],
        everywhere: Mapping[str, Callable[[Sequence[bytes]], bytes]],
        poll: Poll | None = None,
        services: Sequence[str] = (),
    ) -> None:
        self.settings = settings or RpcSettings()
        self.port = self.settings.port
        self._tls = tls
        self.prefixes = PrefixMap()
        self.upstreams = [
            Upstream(target, poll=poll, on_return=self._returned, on_change=self._changed) for target in targets
        ]
        self.proxy = Proxy(self.upstreams, readers=readers, everywhere=everywhere, prefixes=self.prefixes)
        self._services = ("", *services)
        self._server = grpc.aio.server(options=self.settings.arguments())
        self._health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]  # not in its stubs
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Router":
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._server.add_generic_rpc_handlers((self.proxy,))
        address = self.settings.address
        try:
            if self._tls is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, server_credentials(self._tls))
        except RuntimeError as error:
            raise DistaffError(f"cannot listen on {address}: is it taken? Port 0 takes a free one") from error
        await self._tell_health()
        await self._server.start()
        for upstream in self.upstreams:
            self._spawn(upstream.watch())
            self._spawn(upstream.follow_load())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await self._server.stop(None)
        for upstream in self.upstreams:
            await upstream.close()

    async def drain(self, grace: float) -> None:
        """Takes no calls any more, and gives those that run `grace` seconds."""
        self.proxy.draining = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._health.enter_graceful_shutdown(), _HEALTH_SECONDS)
        await self.proxy.idle(grace)

    @property
    def ready(self) -> bool:
        """Whether any server serves."""
        return any(upstream.standing.ready for upstream in self.upstreams)

    def _returned(self, upstream: Upstream) -> None:
        self.prefixes.forget(upstream.name)

    def _changed(self, _: Upstream) -> None:
        self._spawn(self._tell_health())

    async def _tell_health(self) -> None:
        known = health_pb2.HealthCheckResponse
        for service in self._services:
            await self._health.set(service, known.SERVING if self.ready else known.NOT_SERVING)

    def _spawn(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def serve(router: Router, *, grace: float, on_ready: Callable[[int], None]) -> int:
    """Runs a router until SIGTERM or SIGINT: then it drains. A second signal ends it at once.

    Returns:
        The exit code: 0 after draining, 143 after a second signal.
    """
    loop, asked, forced = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (forced if asked.is_set() else asked).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with router:
        on_ready(router.port)
        await asked.wait()
        draining = asyncio.create_task(router.drain(grace))
        waiting = asyncio.create_task(forced.wait())
        await asyncio.wait([draining, waiting], return_when=asyncio.FIRST_COMPLETED)
        for task in (draining, waiting):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    return _FORCED if forced.is_set() else 0
