"""Who calls: found out once for each RPC, before its service sees it."""

from contextvars import ContextVar
from dataclasses import dataclass, replace

from ..front import Call
from .failures import Context


@dataclass(frozen=True)
class Identity:
    """Whom a token belongs to.

    Attributes:
        tenant: whose limits count; "" is everybody without a token.
        admin: may use the Admin service.
    """

    tenant: str = ""
    admin: bool = False


NOBODY = Identity()
current: ContextVar[Identity] = ContextVar("distaff_caller", default=NOBODY)
"""Of the RPC that this code answers."""


def called(call: Call, context: Context) -> Call:
    """The call with what its transport knows of it: how long the client waits, who that is, and its trace."""
    left = context.time_remaining()
    limits = [seconds for seconds in (call.timeout, left) if seconds is not None]
    traces = [value for key, value in context.invocation_metadata() or () if key == "traceparent"]
    return replace(
        call,
        timeout=max(0.0, min(limits)) if limits else None,
        tenant=current.get().tenant,
        traceparent=traces[0] if traces and isinstance(traces[0], str) else None,
    )
