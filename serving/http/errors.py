"""What went wrong, as OpenAI's clients read it."""

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from starlette.responses import Response

from ...backends.errors import InvalidParameterError, UsageError
from ..front import Status, status_of

_log = logging.getLogger(__name__)
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {"unknown_model": "model_not_found", "too_long": "context_length_exceeded"}
"""Words that OpenAI's clients look for, where it has one."""


class HttpError(UsageError):
    """A request that HTTP itself has a code for: a body too large, a method that is not there.

    Args:
        code: of HTTP.
        message: for people.
        kind: the word in the error object.
    """

    def __init__(self, code: int, message: str, kind: str) -> None:
        super().__init__(message)
        self.code = code
        self.kind = kind


class InvalidBodyError(InvalidParameterError):
    """A field of the wrong type, an unknown one, or one that is not supported.

    Args:
        field: where in the body, as `messages.0.role`.
        message: what is wrong with it.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(field, None, "")
        self.args = (message,)


def invalid_body(error: ValidationError) -> InvalidBodyError:
    """One of the problems that pydantic found, without the value that was given: it may be a prompt."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    # Of the alternatives of a union, the one that came farthest is most likely what was meant; names of types stand in
    # its path, while clients know fields and places in lists alone.
    first = max(found, key=lambda problem: len(problem["loc"]))
    field = ".".join(str(part) for part in first["loc"] if _is_place(part)) or "body"
    if first["type"] == "extra_forbidden":
        return InvalidBodyError(field, f"{field} is not a field of this request")
    if first["type"] == "json_invalid":
        return InvalidBodyError("body", "the body is no valid JSON")
    if first["type"] == "missing":
        return InvalidBodyError(field, f"{field} is missing")
    message = first["msg"].removeprefix("Value error, ")
    return InvalidBodyError(field, f"{field} {message[0].lower()}{message[1:]}")


_UNIONS = frozenset(("str", "int", "list"))


def _is_place(part: str | int) -> bool:
    return isinstance(part, int) or (part.isidentifier() and part not in _UNIONS)


def http_status(error: BaseException) -> Status:
    """As status_of, with the codes that HTTP alone has."""
    if isinstance(error, HttpError):
        return Status("INVALID_ARGUMENT", error.code, str(error), kind=error.kind)
    return status_of(error)


def error_object(status: Status, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """OpenAI's error object.

    Args:
        more: further members.
    """
    kind = _TYPES.get(status.http, "invalid_request_error" if status.http < 500 else "server_error")
    if status.kind == "unknown_model":
        kind = "invalid_request_error"
    value = {
        "message": status.message,
        "type": kind,
        "param": status.field,
        "code": _CODES.get(status.kind, status.kind),
    }
    return {"error": {**value, **(more or {})}}


def error_response(error: BaseException, more: Mapping[str, Any] | None = None) -> Response:
    """The response to a request that failed before anything was sent; unforeseen errors go to the log."""
    status = http_status(error)
    log_unforeseen(error, status)
    headers = {"content-type": "application/json"}
    if status.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(status.retry_after)))
    if status.http == 401:
        headers["www-authenticate"] = "Bearer"
    if status.http in (408, 413, 415):  # what is left of the body is not read
        headers["connection"] = "close"
    return Response(json.dumps(error_object(status, more)), status.http, headers)


def log_unforeseen(error: BaseException, status: Status) -> None:
    """What clients are not told is for whoever runs the server."""
    if status.grpc == "INTERNAL":
        _log.error("a request failed", exc_info=error)
