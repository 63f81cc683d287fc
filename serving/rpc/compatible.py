"""What the services of other servers' protocols share: how they refuse, and messages with a place for every choice."""

from collections.abc import Iterable, Iterator, Mapping

from google.protobuf.message import Message

from ...backends.errors import UnsupportedError
from ..front import Delta, Event, ForbiddenError
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


def side_by_side(events: Iterable[Event]) -> Iterator[list[Event]]:
    """Events in groups, as few as have no choice's deltas twice.

    For messages with a place for every choice: one for each delta would cost all n of them n times in every step.
    """
    group: list[Event] = []
    seen: set[int] = set()
    for event in events:
        if isinstance(event, Delta):
            if event.index in seen:
                yield group
                group, seen = [], set()
            seen.add(event.index)
        group.append(event)
    yield group


def only_for_admins(method: str) -> None:
    """
    Raises:
        ForbiddenError: the caller of this RPC may not use the Admin service, and so not this method either.
    """
    if not current.get().admin:
        raise ForbiddenError(f"{method} is for callers who may use the Admin service")
