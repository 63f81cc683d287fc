"""A status with what programs can read in it."""

from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2


def detailed_status(
    code: str, message: str, *, field: str | None = None, retry_after: float | None = None
) -> status_pb2.Status:
    """A status with google.rpc.BadRequest or google.rpc.RetryInfo, where either helps.

    Args:
        code: the name of the gRPC status.
        field: of the request, that is wrong.
        retry_after: seconds after which the same call is worth trying again.
    """
    details: list[any_pb2.Any] = []
    if field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(retry_after * 1e9))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    number: Any = grpc.StatusCode[code].value[0]
    return status_pb2.Status(code=number, message=message, details=details)


def _packed(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
