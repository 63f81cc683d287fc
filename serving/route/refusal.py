"""Which failures another server may make good, and the router's own refusals."""

from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from ..client.errors import details_of

RETRY_SECONDS = 1.0
"""When to ask again, if no server is there."""


def is_worth_another(error: grpc.aio.AioRpcError) -> bool:
    """Whether another server may answer where this one did not: it is away, going away, or full for now."""
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return True
    return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and details_of(error.trailing_metadata())[1] is not None


def is_lost(error: grpc.aio.AioRpcError) -> bool:
    """Whether the server could not be reached, or broke down; one that goes away in order says when to come back."""
    return error.code() is grpc.StatusCode.UNAVAILABLE and details_of(error.trailing_metadata())[1] is None


async def refuse(context: Any, message: str) -> None:
    """Ends a call with UNAVAILABLE and the time to come back."""
    retry, packed = error_details_pb2.RetryInfo(), any_pb2.Any()
    retry.retry_delay.CopyFrom(duration_pb2.Duration(seconds=int(RETRY_SECONDS)))
    packed.Pack(retry)
    status = status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message=message, details=[packed])
    await context.abort(
        grpc.StatusCode.UNAVAILABLE, message, (("grpc-status-details-bin", status.SerializeToString()),)
    )
