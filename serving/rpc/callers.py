"""Who calls: found out once for each RPC, before its service sees it."""

from contextvars import ContextVar
from dataclasses import dataclass


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
