"""Ways to ask the HTTP application in tests: in memory, or over a socket as clients do."""

from collections.abc import AsyncIterator
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
