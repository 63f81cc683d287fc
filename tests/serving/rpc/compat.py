"""A compatible service on a loopback port, over the fake model."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import pytest

from distaff.serving.front import Front
from distaff.serving.rpc.guard import Guard

from ..served import Served, serving


class Service(Protocol):
    def add_to(self, server: grpc.aio.Server) -> None: ...


@dataclass
class Reached:
    """A server and the way to it."""

    served: Served
    channel: grpc.aio.Channel


@asynccontextmanager
async def reaching(
    service: Callable[[Front], Service], *, admin: bool = False, **options: Any
) -> AsyncIterator[Reached]:
    """`admin` is whether its callers may use the Admin service, `options` are those of `serving`; at the end nothing
    may be held."""
    async with serving(**options) as served:
        server = grpc.aio.server(interceptors=[Guard(open_admin=admin)])
        service(served.front).add_to(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Reached(served, channel)
        await server.stop(None)
        await served.check_empty()


@asynccontextmanager
async def refused(code: str, *words: str) -> AsyncIterator[None]:
    """What is inside must end with this status, whose message has these words."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert caught.value.code() is grpc.StatusCode[code], caught.value.details()
    for word in words:
        assert word in (caught.value.details() or "")


def run(test: Coroutine[Any, Any, None], seconds: float = 20) -> None:
    asyncio.run(asyncio.wait_for(test, seconds))


async def until(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    """Waits until it is true."""
    for _ in range(int(seconds / 0.005)):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not become true")
