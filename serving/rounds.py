"""Rounds of an engine, and who does them: a thread, or whoever waits for tokens."""

import threading
from collections.abc import Callable
from typing import NamedTuple

from .runner import Ticket

_LONGEST_WAIT = 0.05
"""Seconds that somebody who waits for tokens sleeps between rounds at most."""


class Begun(NamedTuple):
    """Half a round: when it began, what it dispatched, and the step before that, whose tokens are not read yet."""

    started: float
    dispatched: Ticket | None
    previous: Ticket | None


class Rounds:
    """Does rounds when there is something to do, and sleeps until there is.

    Args:
        name: of the thread.
        step: one round; whether there was anything to do.
        wait_seconds: how long nothing will be to do unless somebody wakes it; None is for ever.
        flush: says that the input ends here.
        ended: whether there is nothing to do any more, ever.

    Attributes:
        listeners: called by `tell`, when requests may have been told something.
    """

    def __init__(
        self,
        name: str,
        *,
        step: Callable[[], bool],
        wait_seconds: Callable[[], float | None],
        flush: Callable[[], None],
        ended: Callable[[], bool],
    ) -> None:
        self._name = name
        self._step, self._wait_seconds, self._flush, self._ended = step, wait_seconds, flush, ended
        self.listeners: list[Callable[[], None]] = []
        self._awake = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def in_thread(self) -> bool:
        """Whether a thread does them."""
        return self._thread is not None

    def for_reader(self) -> Callable[[], None] | None:
        """What somebody who waits for tokens has to call; None where a thread does the rounds."""
        return None if self.in_thread else self.pump

    def start(self) -> None:
        """Lets a thread do them until it has ended. Starting again does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()

    def wake(self) -> None:
        """There is something to do."""
        self._awake.set()

    def tell(self) -> None:
        """Readers of outboxes may find something new in them."""
        for call in self.listeners:
            call()

    def join(self) -> None:
        """Waits for the thread, which has to see that it `ended`."""
        self.wake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def pump(self) -> None:
        """A round for somebody who waits for its tokens and so cannot submit more."""
        if not self._step():
            self._flush()
            self._awake.clear()
            wait = self._wait_seconds()
            if wait:
                self._awake.wait(min(wait, _LONGEST_WAIT))

    def _serve(self) -> None:
        while not self._ended():
            self._awake.clear()
            if not self._step():
                self._awake.wait(self._wait_seconds())
