"""What the services of other servers' protocols share: how they refuse, and who calls."""

import dataclasses
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf.message import Message

from ...backends.errors import UnsupportedError
from ..front import Call, status_of

type Context = Any
"""A grpc.aio.ServicerContext; the real one is no subclass of it."""

SEED_MASK = 2**64 - 1
"""Negative seeds of protocols with signed ones become the 64 bits that they are."""


class RefusedFieldError(UnsupportedError):
    """A field of a protocol that cannot be honoured here.

    Args:
        field: as the protocol spells it.
        reason: why not, as a clause.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field} is set, but {reason}: leave it out")
        self.field = field


def refuse(message: Message, reasons: Mapping[str, str], prefix: str = "") -> None:
    """
    Args:
        message: of a client.
        reasons: fields that are not honoured, and why.
        prefix: before the field's name, where the message is part of another.

    Raises:
        RefusedFieldError: the message sets one of them.
    """
    for field, _ in message.ListFields():
        if field.name in reasons:
            raise RefusedFieldError(prefix + field.name, reasons[field.name])


def listed(names: Iterable[str]) -> str:
    """Names in a sentence."""
    return ", ".join(sorted(names))


@asynccontextmanager
async def answering(context: Context) -> AsyncIterator[None]:
    """Ends an RPC with the status of what is raised inside."""
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except Exception as error:
        status = status_of(error)
        await context.abort(grpc.StatusCode[status.grpc], status.message)


def called(call: Call, context: Context) -> Call:
    """The call with what the transport knows of it: how long its client waits, and its trace."""
    left = context.time_remaining()
    timeouts = [seconds for seconds in (call.timeout, left) if seconds is not None]
    timeout = max(0.0, min(timeouts)) if timeouts else None
    trace = {key: value for key, value in context.invocation_metadata() or () if key == "traceparent"}
    return dataclasses.replace(call, timeout=timeout, traceparent=trace.get("traceparent"))
