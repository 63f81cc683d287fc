"""From exceptions to how an RPC ends: status, message, and details that programs can read."""

import logging
from typing import Any, NoReturn

from google.rpc import status_pb2
from grpc_status import rpc_status

from ..front import Status, status_of
from .details import detailed_status

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
    return detailed_status(status.grpc, status.message, field=status.field, retry_after=status.retry_after)
