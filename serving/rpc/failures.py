"""From exceptions to how an RPC ends: status, message, and details that programs can read."""

import logging
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from ..front import Status, status_of

type Context = Any
"""A grpc.aio.ServicerContext; the real one is no subclass of it."""

_log = logging.getLogger(__name__)


def told(error: BaseException) -> Status:
    """What a client is told of an error; one that nobody foresaw goes to the log."""
    status = status_of(error)
    if status.grpc == "INTERNAL":
        _log.error("a request failed: %r", error, exc_info=error)
    return status


async def abort(context: Context, error: BaseException) -> NoReturn:
    """Ends an RPC with the status of an error."""
    status = told(error)
    await context.abort_with_status(rpc_status.to_status(detailed(status)))
    raise AssertionError("abort_with_status raises")


def detailed(status: Status) -> status_pb2.Status:
    """A status with google.rpc.BadRequest or google.rpc.RetryInfo, where either helps."""
    details: list[any_pb2.Any] = []
    if status.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=status.field, description=status.message)
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if status.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(status.retry_after * 1e9))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    code: Any = grpc.StatusCode[status.grpc].value[0]
    return status_pb2.Status(code=code, message=status.message, details=details)


def _packed(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
