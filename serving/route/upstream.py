"""One of the servers behind the router: whether it serves, how busy it is, and the way there."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ..client.target import Target
from .policy import Standing

_log = logging.getLogger(__name__)

_AGAIN_SECONDS = (0.1, 2.0)  # between attempts to reach a server that is away: at first, and at most
_LOAD_SECONDS = 0.5  # between two questions after its load

_SILENT = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)

Poll = Callable[["Upstream"], Awaitable[None]]
"""Asks a server how busy it is, and enters that in its standing. Raises AioRpcError."""


class Upstream:
    """A server. `standing` is what the policy reads.

    Args:
        poll: asks it how busy it is; None never asks.
        on_return: called when it serves after having been away: it may have been started anew, with an empty cache.
        on_change: called whenever it begins or ceases to serve.
    """

    def __init__(
        self,
        target: Target,
        *,
        poll: Poll | None = None,
        on_return: Callable[["Upstream"], None] = lambda _: None,
        on_change: Callable[["Upstream"], None] = lambda _: None,
    ) -> None:
        self.target = target
        self.standing = Standing(target.place, ready=False)
        self.channel = target.aio_channel()
        self._poll = poll
        self._on_return, self._on_change = on_return, on_change
        self._stub: Any = health_pb2_grpc.HealthStub(self.channel)
        self._was_away = True
        self._doubted = asyncio.Event()

    @property
    def name(self) -> str:
        return self.standing.name

    async def watch(self) -> None:
        """Follows its health until cancelled."""
        wait = _AGAIN_SECONDS[0]
        while True:
            call = self._stub.Watch(health_pb2.HealthCheckRequest(), metadata=self.target.metadata)
            try:
                while (answer := await self._next(call)) is not None:
                    wait = _AGAIN_SECONDS[0]
                    self._set(answer.status == health_pb2.HealthCheckResponse.SERVING)
            except grpc.aio.AioRpcError as error:
                if error.code() in _SILENT:  # it answers, and says nothing of its health
                    self._set(True)
                    await asyncio.sleep(_AGAIN_SECONDS[1])
                    continue
            finally:
                call.cancel()
            self.lost()
            self._doubted.clear()
            await asyncio.sleep(wait)
            wait = min(2 * wait, _AGAIN_SECONDS[1])

    async def _next(self, call: Any) -> Any:
        """The next word on its health; None at the end, or where a call gives reason to ask anew."""
        answer, doubt = asyncio.ensure_future(call.read()), asyncio.ensure_future(self._doubted.wait())
        try:
            await asyncio.wait((answer, doubt), return_when=asyncio.FIRST_COMPLETED)
            return None if self._doubted.is_set() else answer.result() or None
        finally:
            for task in (answer, doubt):
                task.cancel()
            await asyncio.gather(answer, doubt, return_exceptions=True)

    async def follow_load(self) -> None:
        """Asks it how busy it is, now and again, until cancelled or told that it does not say."""
        while self._poll is not None:
            if self.standing.ready:
                try:
                    await self._poll(self)
                except grpc.aio.AioRpcError as error:
                    self.standing.report(0, 0, 0)  # what it said before holds no longer
                    if error.code() in _SILENT:
                        return  # what this router sent there is all that it will know
            await asyncio.sleep(_LOAD_SECONDS)

    def lost(self) -> None:
        """It cannot be reached: nothing is sent there until its health, asked anew, says otherwise."""
        self._was_away = True
        self._doubted.set()
        self.standing.report(0, 0, 0)
        self._set(False)

    async def close(self) -> None:
        await self.channel.close()

    def _set(self, ready: bool) -> None:
        if ready and self._was_away:
            self._was_away = False
            self._on_return(self)
        if ready != self.standing.ready:
            self.standing.ready = ready
            _log.info("%s %s", self.name, "serves" if ready else "does not serve")
            self._on_change(self)
