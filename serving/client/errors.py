"""What a server refuses, as exceptions: one type for each status, with the field and the wait that the server named."""

from typing import ClassVar

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from ...backends.errors import DistaffError

_DETAILS = "grpc-status-details-bin"


class ServerError(DistaffError):
    """A call failed; the subclasses say how.

    Attributes:
        code: the name of the gRPC status, such as "INVALID_ARGUMENT".
        field: the field of the request that the server found wrong, None where it named none.
        retry_after: seconds that the server asked to wait, None where it said nothing of trying again.
    """

    def __init__(
        self, message: str, *, code: str = "UNKNOWN", field: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.retry_after = retry_after

    @property
    def is_passing(self) -> bool:
        """Whether the same call may be served later, or by another server: this one is away, goes down, or is full and
        says when to come back."""
        return isinstance(self, UnavailableError) or (isinstance(self, OverloadedError) and self.is_refusal)

    @property
    def is_refusal(self) -> bool:
        """Whether the server says when to come back, and so has done nothing of the call."""
        return self.retry_after is not None

    @property
    def is_lost(self) -> bool:
        """Whether the server could not be reached, or broke down amid the call: who knows how far it came."""
        return self.code == "UNAVAILABLE" and not self.is_refusal


class InvalidRequestError(ServerError):
    """Something of the request cannot be honoured; the same request will fail again."""

    exit_code: ClassVar[int] = 2


class UnknownNameError(ServerError):
    """The server has no model, method or request of this name."""

    exit_code: ClassVar[int] = 2


class DuplicateRequestError(ServerError):
    """A request with this id is running."""


class AuthenticationError(ServerError):
    """The server does not know the token or the certificate."""


class ForbiddenError(ServerError):
    """The server knows who asks, and refuses it."""


class OverloadedError(ServerError):
    """The server, or this tenant's share of it, is full."""


class UnavailableError(ServerError):
    """No server answers there, or it is shutting down (ABORTED: it was, before the answer was complete)."""


class DeadlineError(ServerError):
    """The time for this call was over before its answer."""


class CancelledError(ServerError):
    """The call was cancelled."""


class UnsupportedCallError(ServerError):
    """The server does not know how to do this."""

    exit_code: ClassVar[int] = 2


class InternalError(ServerError):
    """The server failed."""


_TYPES: dict[str, type[ServerError]] = {
    "INVALID_ARGUMENT": InvalidRequestError,
    "OUT_OF_RANGE": InvalidRequestError,
    "FAILED_PRECONDITION": InvalidRequestError,
    "NOT_FOUND": UnknownNameError,
    "ALREADY_EXISTS": DuplicateRequestError,
    "UNAUTHENTICATED": AuthenticationError,
    "PERMISSION_DENIED": ForbiddenError,
    "RESOURCE_EXHAUSTED": OverloadedError,
    "UNAVAILABLE": UnavailableError,
    "ABORTED": UnavailableError,
    "DEADLINE_EXCEEDED": DeadlineError,
    "CANCELLED": CancelledError,
    "UNIMPLEMENTED": UnsupportedCallError,
}


def error_of(failure: grpc.RpcError, target: str) -> ServerError:
    """The exception for a failed call to `target`, whether it came from grpc or from grpc.aio."""
    code: str = failure.code().name
    message = failure.details() or ""
    field, retry_after = details_of(failure.trailing_metadata())
    if code == "UNAVAILABLE" and retry_after is None:
        message = f"{target}: {message or 'nothing answers'}; is a server running there (distaff serve)?"
    elif code == "UNIMPLEMENTED":
        message = f"{target}: {message or 'unknown method'}; the server does not offer this call"
    message = message or f"{target}: the call ended with {code}"
    return typed(message, code=code, field=field, retry_after=retry_after)


def typed(message: str, *, code: str, field: str | None = None, retry_after: float | None = None) -> ServerError:
    """The exception for a status."""
    return _TYPES.get(code, InternalError)(message, code=code, field=field, retry_after=retry_after)


def details_of(metadata: object) -> tuple[str | None, float | None]:
    """The first field and the wait in seconds that a status names in its details (google.rpc), None for what it does
    not name."""
    field = retry_after = None
    for name, value in metadata or ():  # pyright: ignore[reportGeneralTypeIssues]  # grpc's metadata, of either kind
        if name != _DETAILS:
            continue
        try:
            status = status_pb2.Status.FromString(value)
        except DecodeError:
            continue
        for detail in status.details:
            bad, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
            if detail.Unpack(bad) and bad.field_violations:
                field = bad.field_violations[0].field
            elif detail.Unpack(retry):
                retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return field, retry_after
