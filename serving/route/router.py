"""The router as a server: its port, its own health, its end."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Mapping, Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from ...backends.errors import DistaffError
from ..client.target import MAX_MESSAGE_BYTES, Target
from .prefix_map import PrefixMap
from .proxy import Proxy, Reader
from .upstream import Poll, Upstream

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),  # a port that is taken is an error
)
_FORCED = 128 + signal.SIGTERM


class Router:
    """Fronts several servers. Use it as an async context manager.

    Args:
        targets: the servers.
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
        host: str = "127.0.0.1",
        port: int = 0,
        credentials: grpc.ServerCredentials | None = None,
        readers: Mapping[str, Reader],
        everywhere: Mapping[str, Callable[[Sequence[bytes]], bytes]],
        poll: Poll | None = None,
        services: Sequence[str] = (),
    ) -> None:
        self.port = port
        self.prefixes = PrefixMap()
        self.upstreams = [
            Upstream(target, poll=poll, on_return=self._returned, on_change=self._changed) for target in targets
        ]
        self.proxy = Proxy(self.upstreams, readers=readers, everywhere=everywhere, prefixes=self.prefixes)
        self._host, self._credentials = host, credentials
        self._services = ("", *services)
        self._server = grpc.aio.server(options=_OPTIONS)
        self._health = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]  # not in its stubs
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Router":
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._server.add_generic_rpc_handlers((self.proxy,))
        address = f"{self._host}:{self.port}"
        try:
            if self._credentials is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise DistaffError(
                f"{address}: cannot listen there; is the port taken? --port 0 picks a free one"
            ) from error
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
        await self._health.enter_graceful_shutdown()
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
