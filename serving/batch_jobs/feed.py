"""A thread that reads lines, makes requests of them, and keeps a window of them ready."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable

from .errors import LineError
from .line import Line
from .order import ordered
from .prepare import Prepared, Preparer

WINDOW_LINES = 1024
"""Lines that are put into order together; twice as many wait besides."""
WINDOW_BYTES = 32 * 2**20
"""A window ends when its prompts take more memory than this, as about."""
_BYTES_PER_TOKEN = 40
"""Of a tuple of Python's numbers."""
_TICK = 0.1


class Feed:
    """Lines that are ready for the engine, one after the other.

    Args:
        lines: those that have no answer yet.
        preparer: what makes requests of them.
        refuse: called with each line that cannot be answered, in the feed's thread.
        window: how many are put into order together.
    """

    def __init__(
        self,
        lines: Iterable[Line],
        preparer: Preparer,
        refuse: Callable[[Line, LineError], None],
        *,
        window: int = WINDOW_LINES,
    ) -> None:
        self._lines = lines
        self._preparer = preparer
        self._refuse = refuse
        self._window = window
        self._windows: queue.Queue[list[Prepared]] = queue.Queue(1)
        self._ready: deque[Prepared] = deque()
        self._ended = False
        self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="distaff-batch-feed", daemon=True)
        self._thread.start()

    def next(self, timeout: float = 0.0) -> Prepared | None:
        """The next line, None if none is ready within `timeout` seconds.

        Raises:
            DistaffError: the input cannot be read.
        """
        if not self._ready:
            ended = self._ended  # before looking, since the thread may put more in between
            try:
                wait = bool(timeout) and not ended
                self._ready.extend(self._windows.get(wait, timeout if wait else None))
            except queue.Empty:
                if ended and self._error is not None:
                    raise self._error from None
                return None
        return self._ready.popleft()

    @property
    def ended(self) -> bool:
        """Whether nothing comes any more."""
        return self._ended and not self._ready and self._windows.empty() and self._error is None

    def close(self) -> None:
        """Reads no further."""
        self._closed = True
        self._thread.join()

    def _run(self) -> None:
        try:
            window: list[Prepared] = []
            size = 0
            for line in self._lines:
                if self._closed:
                    return
                try:
                    if line.problem is not None:
                        raise line.problem
                    item = self._preparer.prepare(line)
                except LineError as problem:
                    self._refuse(line, problem)
                    continue
                window.append(item)
                size += _BYTES_PER_TOKEN * sum(len(each.prompt) for each in item.requests)
                if len(window) >= self._window or size > WINDOW_BYTES:
                    self._put(ordered(window))
                    window, size = [], 0
            self._put(ordered(window, last=True))
        except BaseException as error:
            self._error = error
        finally:
            self._ended = True

    def _put(self, items: list[Prepared]) -> None:
        while items and not self._closed:
            try:
                self._windows.put(items, timeout=_TICK)
                return
            except queue.Full:
                continue
