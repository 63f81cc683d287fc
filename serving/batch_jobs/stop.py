"""Signals that ask a job to stop, and the promise that it does so in time."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from .errors import JobStoppedError

GRACE_SECONDS = 4.5
"""Spot machines vanish soon after SIGTERM: what has not come to an end by then is cut off."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ASK = b"\0"  # no signal has this number


class StopSignals:
    """While this is entered, SIGTERM and SIGINT only set `asked`; GRACE_SECONDS later, or with the next signal, the
    process ends whatever it does. For the main thread, which may be inside a compiler at the time.

    Attributes:
        asked: whether a signal came, or somebody has called `ask`.
    """

    def __init__(self, grace: float = GRACE_SECONDS) -> None:
        self.asked = False
        self._grace = grace
        self._left = threading.Event()
        self._lock = threading.Lock()
        self._calls: list[Callable[[], object]] = []
        self._told = False
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        # Python's own handlers run between bytecodes of the main thread; this byte is written at once.
        self._old_fd = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        for each in _SIGNALS:
            self._handlers[each] = signal.signal(each, _ignore)
        threading.Thread(target=self._watch, name="distaff-batch-stop", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        for each, handler in self._handlers.items():
            signal.signal(each, handler)
        signal.set_wakeup_fd(self._old_fd)
        self._write.close()  # ends the watching thread

    def ask(self) -> None:
        """As if a first signal had come; where one has, it does nothing."""
        self.asked = True
        with suppress(OSError):  # left already
            self._write.send(_ASK)

    def tell(self, call: Callable[[], object]) -> None:
        """Calls this in a thread of its own when the job is asked to stop, or now if it was."""
        with self._lock:
            self._calls.append(call)
            told = self._told
        if told:
            _begin(call)

    def _watch(self) -> None:
        with self._read:
            heard = self._heard((*_SIGNALS, *_ASK))
            if heard is None:
                return
            until = time.monotonic() + self._grace
            with self._lock:
                self.asked = self._told = True
                calls = tuple(self._calls)
            for call in calls:
                _begin(call)
            try:
                # Where all hosts get a signal, this one's may come behind the word of another: then it is the first.
                for _ in range(1 if heard in _SIGNALS else 2):
                    if self._heard(_SIGNALS, until) is None:
                        return
                why = "a second signal came"
            except TimeoutError:
                why = f"{self._grace:g} s were not enough to end in order"
        if not self._left.is_set():
            sys.stderr.write(f"stopped at once: {why}; --resume goes on\n")
            sys.stderr.flush()
            os._exit(JobStoppedError.exit_code)

    def _heard(self, what: Collection[int], until: float | None = None) -> int | None:
        """Waits for one of these bytes, and returns it; None when there is nobody left to send one.

        Raises:
            TimeoutError: none came until then.
        """
        while True:
            self._read.settimeout(None if until is None else max(1e-3, until - time.monotonic()))
            data = self._read.recv(1)
            if not data:
                return None
            if data[0] in what:
                return data[0]


def _begin(call: Callable[[], object]) -> None:
    threading.Thread(target=call, name="distaff-batch-stop", daemon=True).start()


def _ignore(number: int, frame: FrameType | None) -> None:
    """The watching thread has seen it."""
