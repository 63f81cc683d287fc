"""What clients are told of errors: a status, a field, a time; and nothing of the server's insides."""

import pytest

from distaff.backends.errors import DistaffError, InvalidParameterError
from distaff.models.errors import TokenizerError
from distaff.serving.errors import ContextLengthError, DeviceError, EngineClosedError
from distaff.serving.front import (
    AuthenticationError,
    CancelledByClientError,
    DeadlineError,
    DrainingError,
    DuplicateIdError,
    ForbiddenError,
    InvalidPromptError,
    NotPossibleError,
    NotReadyError,
    OverloadedError,
    UnknownModelError,
    status_of,
)
from distaff.serving.front.status import HTTP_CODES


@pytest.mark.parametrize(
    ("error", "grpc", "http", "field", "retry_after"),
    [
        (InvalidParameterError("top_p", 7, "less"), "INVALID_ARGUMENT", 400, "top_p", None),
        (InvalidPromptError("bad", "messages"), "INVALID_ARGUMENT", 400, "messages", None),
        (ContextLengthError("long"), "INVALID_ARGUMENT", 400, "prompt", None),
        (AuthenticationError("who"), "UNAUTHENTICATED", 401, None, None),
        (ForbiddenError("no"), "PERMISSION_DENIED", 403, None, None),
        (UnknownModelError("what"), "NOT_FOUND", 404, "model", None),
        (DuplicateIdError("again"), "ALREADY_EXISTS", 409, "id", None),
        (OverloadedError("full", 2.5), "RESOURCE_EXHAUSTED", 429, None, 2.5),
        (CancelledByClientError("gone"), "CANCELLED", 499, None, None),
        (DrainingError("down", 1.0), "UNAVAILABLE", 503, None, 1.0),
        (NotReadyError("up", 1.0), "UNAVAILABLE", 503, None, 1.0),
        (EngineClosedError("x"), "UNAVAILABLE", 503, None, 1.0),
        (DeadlineError("late"), "DEADLINE_EXCEEDED", 504, None, None),
        (NotPossibleError("not here"), "FAILED_PRECONDITION", 400, None, None),
    ],
)
def test_each_error_has_one_status(
    error: Exception, grpc: str, http: int, field: str | None, retry_after: float | None
) -> None:
    status = status_of(error)
    assert (status.grpc, status.http, status.field, status.retry_after) == (grpc, http, field, retry_after)
    assert HTTP_CODES[status.grpc] == status.http


@pytest.mark.parametrize(
    ("error", "grpc"),
    [
        (DeviceError("the device failed: /opt/secret/kernel.cc"), "INTERNAL"),
        (DistaffError("/opt/secret is broken"), "INTERNAL"),
        (RuntimeError("/opt/secret"), "INTERNAL"),
        (TokenizerError("/opt/secret/tokenizer.json: encoding the text failed"), "INVALID_ARGUMENT"),
    ],
)
def test_insides_stay_inside(error: Exception, grpc: str) -> None:
    status = status_of(error)
    assert status.grpc == grpc and "secret" not in status.message


def test_a_message_that_repeats_a_client_is_short() -> None:
    assert len(status_of(InvalidParameterError("stop", "x" * 10**6, "less")).message) < 1100
