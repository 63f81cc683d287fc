"""What came for a stream and was not read yet: bounded, since deltas beyond the bound are joined."""

from collections import deque

from ..logprobs import TokenLogprob
from .events import Delta, Event


class _Pile:
    """Deltas of one choice that wait together."""

    def __init__(self, index: int) -> None:
        self.index = index
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []

    def add(self, text: str, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprob, ...]) -> None:
        self._texts.append(text)
        self._token_ids += token_ids
        self._logprobs += logprobs

    def delta(self) -> Delta:
        return Delta(self.index, "".join(self._texts), tuple(self._token_ids), tuple(self._logprobs))


class Buffer:
    """Events in their order.

    Args:
        most: events; a choice has one Delta beyond them at most.

    Attributes:
        events: what waits, the oldest first.
        joined: tokens that were added to a Delta that waited.
    """

    def __init__(self, most: int) -> None:
        self.joined = 0
        self._most = most
        self.events: deque[Event | _Pile] = deque()
        self._piles: dict[int, _Pile] = {}

    def __len__(self) -> int:
        return len(self.events)

    def add(self, event: Event) -> None:
        """Anything but a Delta."""
        self.events.append(event)

    def add_delta(self, index: int, text: str, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprob, ...]) -> None:
        """What came for a choice."""
        if len(self.events) < self._most and index not in self._piles:
            self.events.append(Delta(index, text, token_ids, logprobs))
            return
        pile = self._piles.get(index)
        if pile is None:
            pile = self._piles[index] = _Pile(index)
            self.events.append(pile)
        else:
            self.joined += len(token_ids)
        pile.add(text, token_ids, logprobs)

    def pop(self) -> Event:
        """The oldest one."""
        event = self.events.popleft()
        if isinstance(event, _Pile):
            del self._piles[event.index]
            return event.delta()
        return event

    def clear(self) -> None:
        self.events.clear()
        self._piles.clear()
