"""Keeps the engine full with the lines of a job, and hands on what has ended."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from ...backends.errors import DistaffError, InvalidParameterError, UsageError
from ..errors import CacheTooSmallError, ContextLengthError, DeviceError, EngineClosedError
from ..generation import Outlet, Result, Start
from ..logprobs import PromptLogprobs
from ..results import Timings, TokenEvent, Usage
from ..types import Request
from .errors import LineError
from .feed import Feed
from .prepare import Prepared
from .writer import Answered, Writer

_WAIT_SECONDS = 0.02
_ATTEMPTS = 3
"""Times that a line is computed before its failure is its answer."""


@runtime_checkable
class Answering(Protocol):
    """The engine, as far as it is needed here."""

    def submit_to(self, outbox: Outlet, request: Request) -> Callable[[], None]: ...

    def flush(self) -> None: ...


@dataclass
class _Work:
    """A line in the engine."""

    item: Prepared
    attempts: int = 1
    results: list[Result | None] = field(default_factory=list)
    error: BaseException | None = None
    left: int = 0
    aborts: list[Callable[[], None]] = field(default_factory=list)


class _Part:
    """The end of one request of a line: an Outlet that keeps nothing but the result."""

    def __init__(self, work: _Work, index: int, ended: "deque[_Work]") -> None:
        self.ended = False
        self._work, self._index, self._ended = work, index, ended

    def begin(self, start: Start) -> None:
        """Nobody waits for it."""

    def read(self, prompt: PromptLogprobs) -> None:
        """The result has them."""

    def put(self, event: TokenEvent) -> None:
        """The result has all of them."""

    def end(self, result: Result | None, error: BaseException | None, usage: Usage, timings: Timings) -> None:
        self.ended = True
        work = self._work
        work.results[self._index] = result
        work.error = work.error or error
        work.left -= 1
        if not work.left:
            self._ended.append(work)


class Runner:
    """Takes lines from a feed to the engine, and answers to a writer.

    Args:
        engine: what answers.
        advance: lets it go a step on, or waits until it has; returns whether something happened.
        capacity: requests that it is to have at any time, running and waiting.
        stopping: whether to stop; looked at between steps.
    """

    def __init__(
        self,
        engine: Answering,
        feed: Feed,
        writer: Writer,
        *,
        advance: Callable[[], object],
        capacity: Callable[[], int],
        stopping: Callable[[], bool] = lambda: False,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine, self._feed, self._writer = engine, feed, writer
        self._advance, self._capacity = advance, capacity
        self._stopping, self._on_step = stopping, on_step
        self._ended: deque[_Work] = deque()
        self._works: dict[int, _Work] = {}
        self._requests = 0

    def run(self) -> bool:
        """Answers lines until none is left; False if it stopped before.

        Raises:
            DistaffError: the input or the engine failed.
            OSError: the journal cannot be written.
        """
        try:
            while not self._stopping():
                if self._writer.error is not None:
                    raise self._writer.error
                self._fill()
                if not self._works:
                    if self._feed.ended:
                        return True
                    self._take(_WAIT_SECONDS)
                    continue
                if not self._advance():
                    self._engine.flush()
                self._finish()
                self._on_step()
            return False
        finally:
            self._drop()

    def _fill(self) -> None:
        while self._requests < self._capacity() and self._take(0.0):
            pass

    def _take(self, timeout: float) -> bool:
        item = self._feed.next(timeout)
        if item is not None:
            self._submit(item)
        return item is not None

    def _submit(self, item: Prepared, attempts: int = 1) -> None:
        count = len(item.requests)
        work = _Work(item, attempts, [None] * count, left=count)
        try:
            for index, request in enumerate(item.requests):
                work.aborts.append(self._engine.submit_to(_Part(work, index, self._ended), request))
        except (EngineClosedError, DeviceError):
            raise
        except UsageError as error:
            for abort in work.aborts:
                abort()
            self._writer.refuse(item.line, _refusal(error))
            return
        self._works[id(work)] = work
        self._requests += count

    def _finish(self) -> None:
        """Hands on what has ended."""
        answered: list[Answered] = []
        failed: list[_Work] = []
        while self._ended:
            work = self._ended.popleft()
            del self._works[id(work)]
            self._requests -= len(work.item.requests)
            results = [result for result in work.results if result is not None]
            if work.error is None and len(results) == len(work.results):
                answered.append((work.item, results))
            else:
                failed.append(work)
        if answered:
            self._writer.put(answered)
        for work in failed:
            self._try_again(work)

    def _try_again(self, work: _Work) -> None:
        item = work.item
        if isinstance(work.error, EngineClosedError):
            raise work.error
        if work.attempts < _ATTEMPTS:
            self._submit(item, work.attempts + 1)
        else:
            problem = LineError("server_error", f"it failed {_ATTEMPTS} times: {work.error}", status=500)
            self._writer.refuse(item.line, problem)

    def _drop(self) -> None:
        """Ends what still runs; the next run computes it again."""
        for work in self._works.values():
            for abort in work.aborts:
                abort()
        self._works.clear()


def _refusal(error: DistaffError) -> LineError:
    if isinstance(error, InvalidParameterError):
        return LineError("invalid_parameter", str(error), param=error.field)
    too_long = isinstance(error, ContextLengthError | CacheTooSmallError)
    return LineError("context_length_exceeded" if too_long else "invalid_request", str(error))
