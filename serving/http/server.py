"""What listens: uvicorn, in the event loop that is there, without signals, loggers or sockets of its own."""

import asyncio
import contextlib
import math
import socket
import time
from collections.abc import Generator
from typing import Any, NamedTuple

import uvicorn
from starlette.types import ASGIApp

from ..tls_files import TlsFiles
from .tls import TlsContext

_LOOK_SECONDS = 1.0
_START_SECONDS = 0.005


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Signals are the process's own affair: it drains gRPC and HTTP together."""
        yield


class HttpServer:
    """Serves an ASGI application on one address.

    Args:
        app: see build_app.
        host, port: where; port 0 takes a free one.
        idle_seconds: after which a connection without a request is closed, half of a request's head included.
        stall_seconds: after which a connection is cut whose client does not read its response.
        max_connections: beyond them the answer is 503.
        tls: None: without.

    Attributes:
        port: where it listens.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        idle_seconds: float = 75.0,
        stall_seconds: float = 30.0,
        max_connections: int = 4096,
        tls: TlsFiles | None = None,
    ) -> None:
        self._host = host
        self.port = port
        self._idle_seconds = idle_seconds
        self._stall_seconds = stall_seconds
        self._tls = context = None if tls is None else TlsContext(tls)
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            http="h11",
            ws="none",
            proxy_headers=False,
            timeout_keep_alive=int(idle_seconds),
            limit_concurrency=max_connections,
            ssl_context_factory=None if context is None else lambda config, default: context.context,
        )
        self._server = _Uvicorn(config)
        self._serving: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None

    @property
    def num_connections(self) -> int:
        """Those that are open."""
        return len(self._server.server_state.connections)

    async def start(self) -> None:
        """Returns once it listens.

        Raises:
            OSError: the address is taken, or none of this machine.
        """
        family, kind, protocol, _, address = socket.getaddrinfo(
            self._host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._serving = asyncio.create_task(self._server.serve([listener]), name="distaff-http")
        while not self._server.started:
            if self._serving.done():
                await self._serving
            await asyncio.sleep(_START_SECONDS)
        self._looking = asyncio.create_task(self._look(), name="distaff-http-connections")

    async def stop(self, grace: float) -> None:
        """Takes no connection any more, gives requests that run `grace` seconds, and cuts the rest."""
        if self._serving is None:
            return
        self._server.should_exit = True
        done, _ = await asyncio.wait([self._serving], timeout=grace)
        if not done:
            self._server.force_exit = True
            for connection in tuple(self._server.server_state.connections):
                _abort(connection)
            await asyncio.wait([self._serving], timeout=5)
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking
        self._serving = self._looking = None

    async def _look(self) -> None:
        """Closes connections that hold a descriptor for nothing, which uvicorn leaves open for ever; notices new
        certificates."""
        limits = {"idle": self._idle_seconds, "stalled": self._stall_seconds}
        since: dict[object, tuple[_Sight, float]] = {}
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if self._tls is not None:
                self._tls.refresh()
            now, before, since = time.monotonic(), since, {}
            for connection in tuple(self._server.server_state.connections):
                sight = _look_at(connection)
                known = before.get(connection)
                since[connection] = known if known is not None and known[0] == sight else (sight, now)
                if now - since[connection][1] > limits.get(sight.doing, math.inf):
                    _abort(connection)


class _Sight(NamedTuple):
    """A connection as it was found; an equal one later means that nothing moved in between.

    `doing` is idle (no request), stalled (a response waits for its reader) or busy.
    """

    doing: str
    cycle: int
    unsent: int


def _look_at(connection: Any) -> _Sight:
    cycle, transport = connection.cycle, connection.transport
    unsent = 0 if transport is None else transport.get_write_buffer_size()
    if connection.flow is not None and connection.flow.write_paused:
        return _Sight("stalled", id(cycle), unsent)
    return _Sight("idle" if cycle is None or cycle.response_complete else "busy", id(cycle), unsent)


def _abort(connection: Any) -> None:
    if connection.transport is not None:
        connection.transport.abort()
