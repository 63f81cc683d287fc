"""How the router ends calls: with a server's own status, or with one of its own."""

from typing import Any

import grpc
from grpc_status import rpc_status

from ..rpc.details import detailed_status

RETRY_SECONDS = 1.0
"""When to ask again, if no server is there."""

type Context = Any
"""A grpc.aio.ServicerContext; the real one is no subclass of it."""


class NobodyServesError(Exception):
    """No server can take a call now."""

    def __init__(self, servers: int) -> None:
        super().__init__(f"none of the {servers} servers behind this router serves now")


async def refuse(context: Context, message: str) -> None:
    """Ends a call with UNAVAILABLE and the time to come back."""
    await end_with(context, "UNAVAILABLE", message, retry_after=RETRY_SECONDS)


async def end_with(context: Context, code: str, message: str, **details: Any) -> None:
    """Ends a call with a status of the router's own."""
    await context.abort_with_status(rpc_status.to_status(detailed_status(code, message, **details)))


async def end_as(context: Context, error: grpc.aio.AioRpcError) -> None:
    """Ends a call as a server did: with its status, its details and trailing metadata."""
    await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
