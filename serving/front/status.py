"""From exceptions to what a client is told: one table for every protocol."""

import asyncio
from dataclasses import dataclass

from ...backends.errors import DistaffError, InvalidParameterError, UnsupportedError, UsageError
from ...models.errors import ChatTemplateError, TokenizerError
from ..errors import CacheTooSmallError, ContextLengthError, DeviceError, EmptyPromptError, EngineClosedError
from . import errors

HTTP_CODES = {
    "FAILED_PRECONDITION": 400,
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
"""What each gRPC status is called in HTTP."""


@dataclass(frozen=True)
class Status:
    """What a client is told.

    Attributes:
        grpc: a gRPC status by name.
        http: the code for it.
        message: for people; nothing of the server's insides.
        field: of the request, that is wrong.
        retry_after: seconds after which the same call is worth trying again.
        kind: a word that metrics count by.
    """

    grpc: str
    http: int
    message: str
    field: str | None = None
    retry_after: float | None = None
    kind: str = "error"


# The first class that fits counts. Fields of None come from the error, where it has one.
STATUSES: tuple[tuple[type[BaseException], str, str, str | None], ...] = (
    (errors.OverloadedError, "RESOURCE_EXHAUSTED", "overloaded", None),
    (errors.DrainingError, "UNAVAILABLE", "draining", None),
    (errors.NotReadyError, "UNAVAILABLE", "not_ready", None),
    (errors.DuplicateIdError, "ALREADY_EXISTS", "duplicate_id", "id"),
    (errors.UnknownModelError, "NOT_FOUND", "unknown_model", "model"),
    (errors.DeadlineError, "DEADLINE_EXCEEDED", "deadline", None),
    (errors.CancelledByClientError, "CANCELLED", "cancelled", None),
    (errors.SlowReaderError, "RESOURCE_EXHAUSTED", "slow_reader", None),
    (errors.AuthenticationError, "UNAUTHENTICATED", "unauthenticated", None),
    (errors.ForbiddenError, "PERMISSION_DENIED", "forbidden", None),
    (errors.NotPossibleError, "FAILED_PRECONDITION", "not_possible", None),
    (asyncio.CancelledError, "CANCELLED", "cancelled", None),
    (ContextLengthError, "INVALID_ARGUMENT", "too_long", "prompt"),
    (CacheTooSmallError, "INVALID_ARGUMENT", "too_long", "max_tokens"),
    (EmptyPromptError, "INVALID_ARGUMENT", "invalid", "prompt"),
    (InvalidParameterError, "INVALID_ARGUMENT", "invalid", None),
    (UnsupportedError, "INVALID_ARGUMENT", "unsupported", None),
    (UsageError, "INVALID_ARGUMENT", "invalid", None),
)

# What these say is for whoever runs the server, and goes to its log.
_HIDDEN: tuple[tuple[type[BaseException], str, str, str], ...] = (
    (TokenizerError, "INVALID_ARGUMENT", "the text cannot be tokenised", "invalid"),
    (ChatTemplateError, "INVALID_ARGUMENT", "the chat template refused the messages", "invalid"),
    (EngineClosedError, "UNAVAILABLE", "the server is closed", "draining"),
    (DeviceError, "INTERNAL", "the device failed while it computed this request", "device"),
    (DistaffError, "INTERNAL", "the request failed", "error"),
)
_LONGEST = 1000


def status_of(error: BaseException) -> Status:
    """What a client is told of `error`; of one that nobody foresaw, only that there was one."""
    for kind_of_error, grpc, kind, field in STATUSES:
        if isinstance(error, kind_of_error):
            message = str(error) or kind
            shown = message if len(message) <= _LONGEST else f"{message[:_LONGEST]}..."
            return Status(
                grpc,
                HTTP_CODES[grpc],
                shown,
                field or getattr(error, "field", None),
                getattr(error, "retry_after", None),
                kind,
            )
    for kind_of_error, grpc, message, kind in _HIDDEN:
        if isinstance(error, kind_of_error):
            retry_after = 1.0 if grpc == "UNAVAILABLE" else None
            return Status(grpc, HTTP_CODES[grpc], message, retry_after=retry_after, kind=kind)
    return Status("INTERNAL", 500, "the server failed on this request", kind="internal")
