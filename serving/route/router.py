"""The router as a server: its port, its own health, its end."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import grpc

from ...backends.errors import DistaffError
from ..client.target import Target
from ..rpc.health import HealthService
from ..rpc.settings import RpcSettings
from ..rpc.tls import server_credentials
from ..tls_files import TlsFiles
from .dispatch import Dispatcher
from .prefix_map import PrefixMap
from .protocol import Protocol
from .proxy import Proxy
from .splitter import Splitter
from .upstream import Poll, Upstream

_KILLED = 128
"""Exit codes of a process that a signal ended are so much above its number."""


class Router:
    """Fronts several servers. Use it as an async context manager.

    Args:
        targets: the servers.
        settings, tls: where it listens, and how.
        protocol: what is known of methods.
        split: methods whose requests are batches, which are split among the servers.
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
        protocol: Protocol,
        split: Sequence[str] = (),
        poll: Poll | None = None,
        services: Sequence[str] = (),
    ) -> None:
        self.settings = settings or RpcSettings()
        self.port = self.settings.port
        self._tls = tls
        self.prefixes = PrefixMap()
        self.upstreams = [
            Upstream(target, poll=poll, on_return=self._returned, on_change=lambda _: self.health.tell())
            for target in targets
        ]
        dispatcher = Dispatcher(self.upstreams, self.prefixes)
        self.proxy = Proxy(dispatcher, protocol, dict.fromkeys(split, Splitter(dispatcher)))
        self.health = HealthService(lambda: self.ready, services)
        self._server = grpc.aio.server(options=self.settings.arguments())
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Router":
        self.health.add_to(self._server)
        self._server.add_generic_rpc_handlers((self.proxy,))
        address = self.settings.address
        try:
            if self._tls is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, server_credentials(self._tls))
        except RuntimeError as error:
            raise DistaffError(f"cannot listen on {address}: is it taken? Port 0 takes a free one") from error
        await self._server.start()
        for upstream in self.upstreams:
            self._spawn(upstream.watch())
            self._spawn(upstream.follow_load())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.health.leave()
        await self._server.stop(None)
        for upstream in self.upstreams:
            await upstream.close()

    async def drain(self, grace: float) -> None:
        """Takes no calls any more, and gives those that run `grace` seconds."""
        self.proxy.draining = True
        self.health.leave()
        await self.proxy.idle(grace)

    @property
    def ready(self) -> bool:
        """Whether any server serves."""
        return any(upstream.standing.ready for upstream in self.upstreams)

    def _returned(self, upstream: Upstream) -> None:
        self.prefixes.forget(upstream.name)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def serve(router: Router, *, grace: float, on_ready: Callable[[int], None]) -> int:
    """Runs a router until SIGTERM or SIGINT: then it drains. A second signal ends it at once.

    Returns:
        The exit code: 0 after draining; a second signal's number and 128.
    """
    loop, asked, forced = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    signals: list[int] = []

    def on_signal(number: int) -> None:
        signals.append(number)
        (forced if asked.is_set() else asked).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
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
    return _KILLED + signals[1] if forced.is_set() else 0
