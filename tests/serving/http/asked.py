"""Ways to ask the HTTP application in tests: in memory, or over a socket as clients do."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from distaff.serving.http.app import build_app
from distaff.serving.http.server import HttpServer

from ..served import Served, serving


@asynccontextmanager
async def asking(app: dict[str, Any] | None = None, **front: Any) -> AsyncIterator[tuple[Served, httpx2.AsyncClient]]:
    """A front and a client of its application, without a socket; `app` goes to build_app."""
    async with serving(**front) as served:
        transport = httpx2.ASGITransport(build_app(served.front, **(app or {})), raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            yield served, client


@asynccontextmanager
async def listening(
    app: dict[str, Any] | None = None, server: dict[str, Any] | None = None, **front: Any
) -> AsyncIterator[tuple[Served, httpx2.AsyncClient, HttpServer]]:
    """The same over a socket; `server` goes to HttpServer."""
    async with serving(**front) as served:
        listener = HttpServer(build_app(served.front, **(app or {})), **(server or {}))
        await listener.start()
        try:
            url = f"http://127.0.0.1:{listener.port}"
            async with httpx2.AsyncClient(base_url=url, timeout=20) as client:
                yield served, client, listener
        finally:
            await listener.stop(0.2)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 30))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def events(text: str) -> list[dict[str, Any]]:
    """The server-sent events of a whole stream, without its end mark."""
    parts = text.split("\n\n")
    assert parts[-1] == "" and parts[-2] == "data: [DONE]"
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]
