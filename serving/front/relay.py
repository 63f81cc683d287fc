"""From the engine's thread to the event loop: one wake-up for all that a round has to tell."""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..generation import Result, Start
from ..logprobs import PromptLogprobs
from ..results import Timings, TokenEvent, Usage
from .counters import FrontCounters


@dataclass(frozen=True, slots=True)
class End:
    """The engine has let go of a request."""

    result: Result | None
    error: BaseException | None
    usage: Usage
    timings: Timings


type Item = Start | PromptLogprobs | TokenEvent | End


@runtime_checkable
class Receiver(Protocol):
    """Takes items in the event loop, in their order."""

    def receive(self, item: Item) -> None: ...


class Relay:
    """Collects items in any thread and delivers them in the loop's.

    Args:
        loop: where receivers live.
        counters: what is counted.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, counters: FrontCounters) -> None:
        self._loop = loop
        self._counters = counters
        self._items: deque[tuple[Receiver, Item]] = deque()
        self._waking = False

    def add(self, receiver: Receiver, item: Item) -> None:
        """Leaves an item; it is on its way with the next `flush`."""
        self._items.append((receiver, item))

    def flush(self) -> None:
        """Wakes the loop, if there is something for it and it does not know yet."""
        if self._items and not self._waking:
            self._waking = True
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                self._items.clear()  # the loop is closed: there are no readers any more

    def _deliver(self) -> None:
        self._waking = False  # before looking: what comes from now on wakes again
        self._counters.wakeups += 1
        self._counters.items += len(self._items)
        while self._items:
            receiver, item = self._items.popleft()
            receiver.receive(item)


class Wire:
    """The engine's end of a stream: an Outlet that puts everything into the relay."""

    def __init__(self, relay: Relay, receiver: Receiver) -> None:
        self.ended = False
        self._relay = relay
        self._receiver = receiver

    def begin(self, start: Start) -> None:
        self._relay.add(self._receiver, start)

    def read(self, prompt: PromptLogprobs) -> None:
        self._relay.add(self._receiver, prompt)

    def put(self, event: TokenEvent) -> None:
        self._relay.add(self._receiver, event)

    def end(self, result: Result | None, error: BaseException | None, usage: Usage, timings: Timings) -> None:
        self.ended = True
        self._relay.add(self._receiver, End(result, error, usage, timings))
