"""What stands before every service: who may call, messages that are no protobuf, and errors on their way out."""

import asyncio
import inspect
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext
from functools import partial
from typing import Any

import grpc

from ..front.errors import AuthenticationError, ForbiddenError, InvalidPromptError, OverloadedError
from ..front.status import status_of
from ..telemetry.orca import REQUEST_HEADER, TRAILER
from .callers import NOBODY, Identity, current
from .failures import Context, abort

type Authenticate = Callable[[str | None], Identity]
"""From the authorization metadata to whom it belongs; raises AuthenticationError."""

HEALTH = "/grpc.health.v1.Health/"
ADMIN = "/distaff.v1.Admin/"


class _Malformed:
    """A message that could not be read. An exception would end the RPC as UNKNOWN, with Python's words."""


class Guard(grpc.aio.ServerInterceptor):
    """Lets RPCs through to their services, with the caller's identity in `callers.current`.

    Args:
        authenticate: None lets everybody in, as nobody.
        open_admin: whether callers without a token may use the Admin service; looked at only without `authenticate`.
        report: makes an ORCA load report, for RPCs that ask for one.
        count: told the kind of each refusal.
        max_rpcs: at once, health apart: probes are answered however many calls wait for readers that do not read.
            Where callers are told apart, one tenant may have half of them: readers that never read again hold theirs.

    Attributes:
        refused: RPCs that were not let through, counted instead of logged.
        running: RPCs under way, health apart.
    """

    def __init__(
        self,
        authenticate: Authenticate | None = None,
        *,
        open_admin: bool = False,
        report: Callable[[], bytes] | None = None,
        count: Callable[[str], None] = lambda kind: None,
        max_rpcs: int = 8192,
    ) -> None:
        self._count = count
        self._authenticate = authenticate
        self._max_rpcs = max_rpcs
        self.running = 0
        self._of_tenants: Counter[str] = Counter()
        self._report = report
        self._open_admin = open_admin
        self.refused = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method
            return None
        error: Exception | None = None
        caller = NOBODY
        try:
            caller = self._identity(handler_call_details)
        except (AuthenticationError, ForbiddenError) as refusal:
            self.refused += 1
            self._count(status_of(refusal).kind)
            error = refusal
        asked = any(key == REQUEST_HEADER for key, _ in handler_call_details.invocation_metadata or ())
        probe = str(handler_call_details.method).startswith(HEALTH)
        counting = nullcontext if probe else partial(self._counting, caller.tenant)
        return _guarded(handler, caller, error, self._report if asked else None, counting)

    @contextmanager
    def _counting(self, tenant: str) -> Iterator[None]:
        """
        Raises:
            OverloadedError: there are too many RPCs, of all or of this tenant.
        """
        if self.running >= self._max_rpcs:
            raise OverloadedError(f"the server has {self._max_rpcs} calls under way, its limit: try again", 1.0)
        share = max(1, self._max_rpcs // 2)
        if tenant and self._of_tenants[tenant] >= share:
            message = f"you have {share} calls under way, the limit of one tenant: read or cancel some, and try again"
            raise OverloadedError(message, 1.0)
        self.running += 1
        self._of_tenants[tenant] += 1
        try:
            yield
        finally:
            self.running -= 1
            self._of_tenants[tenant] -= 1
            if not self._of_tenants[tenant]:
                del self._of_tenants[tenant]

    def _identity(self, details: grpc.HandlerCallDetails) -> Identity:
        method = str(details.method)
        if method.startswith(HEALTH):
            return NOBODY
        if self._authenticate is None:
            caller = Identity(admin=self._open_admin)
        else:
            given = [value for key, value in details.invocation_metadata or () if key == "authorization"]
            header = given[0] if len(given) == 1 else None
            caller = self._authenticate(header if isinstance(header, str) else None)
        if method.startswith(ADMIN) and not caller.admin:
            needed = "a token with admin: true" if self._authenticate else "a server started with --admin"
            raise ForbiddenError(f"the Admin service needs {needed}")
        return caller


def _guarded(
    handler: Any,
    caller: Identity,
    error: Exception | None,
    report: Callable[[], bytes] | None,
    counting: Callable[[], AbstractContextManager[None]],
) -> Any:
    """The same handler behind the guard."""
    kind = f"{_word(handler.request_streaming)}_{_word(handler.response_streaming)}"
    behaviour: Callable[[Any, Context], Any] = getattr(handler, kind)

    async def enter(request: Any, context: Context) -> Any:
        current.set(caller)
        if error is not None:
            raise error
        if handler.request_streaming:
            return _readable(request)
        _check(request)
        return request

    def told(context: Context) -> None:
        if report is not None:
            context.set_trailing_metadata(((TRAILER, report()),))

    async def answer(request: Any, context: Context) -> Any:
        try:
            with counting():
                response = await behaviour(await enter(request, context), context)
            told(context)
            return response
        except grpc.aio.AbortError:
            raise
        except Exception as failure:
            await abort(context, failure)

    async def answers(request: Any, context: Context) -> None:
        try:
            with counting():
                responses = behaviour(await enter(request, context), context)
                if inspect.isawaitable(responses):  # it writes itself
                    await responses
                else:
                    async with aclosing(responses):
                        async for response in responses:
                            await context.write(response)
            told(context)
        except grpc.aio.AbortError:
            raise
        except grpc.aio.InternalError:  # what was to be written cannot be: the client is gone
            raise asyncio.CancelledError from None
        except Exception as failure:
            await abort(context, failure)

    return getattr(grpc, f"{kind}_rpc_method_handler")(
        answers if handler.response_streaming else answer,
        request_deserializer=_tolerant(handler.request_deserializer),
        response_serializer=handler.response_serializer,
    )


def _word(streaming: bool) -> str:
    return "stream" if streaming else "unary"


def _check(request: Any) -> None:
    if isinstance(request, _Malformed):
        raise InvalidPromptError("the message is no protobuf of the type that is expected here", "message")


async def _readable(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        _check(request)
        yield request


def _tolerant(read: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Reads a message, or makes a _Malformed of it."""
    if read is None:
        return None

    def tolerant(data: bytes) -> Any:
        try:
            return read(data)
        except Exception:
            return _Malformed()

    return tolerant
