"""What stands before every request: who may ask, and how loaded the server was when it answered."""

from collections.abc import Callable
from typing import Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..front import AuthenticationError, ForbiddenError, Front, status_of
from ..front.counters import FrontCounters
from ..telemetry.orca import REQUEST_HEADER, RESPONSE_HEADER, LoadReport
from .completions import TENANT
from .errors import error_response

_PROTECTED = "/v1/"


class Caller(Protocol):
    """Whom a token belongs to."""

    @property
    def tenant(self) -> str: ...


type Authenticate = Callable[[str | None], Caller]
"""From an Authorization header to whom it belongs; raises AuthenticationError or ForbiddenError."""


class Authentication:
    """Middleware: what costs something, which is everything below /v1, needs a token.

    Args:
        app: what comes next.
        authenticate: who a token belongs to.
        counters: where those who were refused are counted.
    """

    def __init__(self, app: ASGIApp, authenticate: Authenticate, counters: FrontCounters) -> None:
        self._app = app
        self._counters = counters
        self._authenticate = authenticate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(_PROTECTED):
            try:
                scope[TENANT] = self._authenticate(Headers(scope=scope).get("authorization")).tenant
            except (AuthenticationError, ForbiddenError) as error:
                self._counters.refused[status_of(error).kind] += 1
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class LoadReports:
    """Middleware: requests that ask for it get a load report in a header of their response.

    Args:
        app: what comes next.
        front: whose load it is.
    """

    def __init__(self, app: ASGIApp, front: Front) -> None:
        self._app = app
        self._front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wanted = Headers(scope=scope).get(REQUEST_HEADER) if scope["type"] == "http" else None
        if wanted is None:
            await self._app(scope, receive, send)
            return

        async def send_with_report(message: Message) -> None:
            if message["type"] == "http.response.start":
                report = LoadReport.of(self._front).header(wanted)
                if report is not None:
                    MutableHeaders(scope=message)[RESPONSE_HEADER] = report
            await send(message)

        await self._app(scope, receive, send_with_report)
