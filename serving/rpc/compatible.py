"""What the services of other servers' protocols share: how they refuse."""

from collections.abc import Iterable, Mapping

from google.protobuf.message import Message

from ...backends.errors import UnsupportedError
from ..front import ForbiddenError
from .callers import current


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


def only_for_admins(method: str) -> None:
    """
    Raises:
        ForbiddenError: the caller of this RPC may not use the Admin service, and so not this method either.
    """
    if not current.get().admin:
        raise ForbiddenError(f"{method} is for callers who may use the Admin service")
