"""One HTTP request and its response, whichever of the two ends first."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from .errors import HttpError, error_response

MAX_BODY = 4 * 2**20
"""Bytes. A megatoken of text fits; all of Python, and so everybody's tokens, waits while JSON is parsed."""
BODY_SECONDS = 30.0

type Work = Callable[["Exchange"], Awaitable[None]]


class Exchange:
    """A request whose body was read, and the way to answer it.

    Attributes:
        request: its head.
        body: all of it.
        started: whether anything was sent.
    """

    def __init__(self, request: Request, body: bytes, send: Send) -> None:
        self.request = request
        self.body = body
        self.started = False
        self._send = send

    async def answer(self, value: Any, headers: Mapping[str, str] | None = None) -> None:
        """A whole response of JSON."""
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
        await self.begin("application/json", {"content-length": str(len(body)), **(headers or {})})
        await self.write(body, last=True)

    async def begin(self, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        """The head of a response."""
        head = {"content-type": content_type, **(headers or {})}
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in head.items()]
        self.started = True
        await self._send({"type": "http.response.start", "status": 200, "headers": raw})

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """A part of it. Waits where the client reads too slowly."""
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})


class Endpoint:
    """An ASGI application that does `work` for each request, and gives it up when the client goes away.

    Args:
        work: reads the exchange's body and answers it. Where it raises before it has begun to, the error is the answer.
        max_body, body_seconds: as read_body has them.
    """

    def __init__(self, work: Work, *, max_body: int, body_seconds: float) -> None:
        self._work = work
        self._max_body = max_body
        self._body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            body = await read_body(request, max_body=self._max_body, body_seconds=self._body_seconds)
        except ClientDisconnect:
            return
        except HttpError as error:
            await error_response(error)(scope, receive, send)
            return
        exchange = Exchange(request, body, send)
        try:
            await until_disconnect(self._work(exchange), receive)
        except Exception as error:
            if exchange.started:
                raise
            await error_response(error)(scope, receive, send)


async def read_body(request: Request, *, max_body: int = MAX_BODY, body_seconds: float = BODY_SECONDS) -> bytes:
    """The body of a request, which is JSON.

    Args:
        max_body: bytes.
        body_seconds: within which all of it must come.

    Raises:
        HttpError: it is longer than allowed, slower, or of a type that nobody reads.
        ClientDisconnect: the client went away.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HttpError(415, f"the content type is {kind[:80]!r}, expected application/json", "content_type")
    told = request.headers.get("content-length", "")
    size = int(told) if told.isdecimal() else 0
    body = bytearray()
    try:
        async with asyncio.timeout(body_seconds):
            if size <= max_body:
                async for part in request.stream():
                    body += part
                    size = len(body)
                    if size > max_body:
                        break
    except TimeoutError:
        raise HttpError(408, f"the body did not come within {body_seconds:g} s", "body_timeout") from None
    if size > max_body:
        raise HttpError(413, f"the body has more than {max_body} bytes, which is the limit", "body_too_large")
    return bytes(body)


async def until_disconnect(work: Awaitable[None], receive: Receive) -> None:
    """Does `work` until the client goes away; then it is cancelled."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        for task in (working, watching):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
