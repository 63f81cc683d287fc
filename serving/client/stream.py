"""The events of an answer as they come, for callers that block and for callers that await."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
from grpc.aio import EOF  # pyright: ignore[reportAttributeAccessIssue]  # not in its stubs

from .attempts import Attempts
from .collector import Collector
from .errors import error_of
from .reading import event_of
from .results import Delta, Event, Result

Open = Callable[[float | None], Any]
"""Begins a call that may take so many seconds."""


class EventStream(Iterator[Event]):
    """Iterates over events: Admitted, Deltas, one Finished for each choice. `text()` iterates over texts instead, and
    `result()` waits for all. A call that could not begin is tried again; one that has begun raises its ServerError.

    Use it as a context manager, or `close()` it, where it may be left early: the server stops then.
    """

    def __init__(self, call: Open, attempts: Attempts, target: str) -> None:
        self._open, self._attempts, self._target = call, attempts, target
        self._collector = Collector()
        self._call: Any = None
        self._begun = False
        self._closed = False

    def __next__(self) -> Event:
        while not self._closed:
            try:
                if self._call is None:
                    self._call = self._open(self._attempts.begin())
                event = event_of(next(self._call))
            except StopIteration:
                self._closed = True
            except grpc.RpcError as failure:
                if self._begun:
                    self._closed = True
                    raise error_of(failure, self._target) from failure
                self._call = None
                time.sleep(self._attempts.wait_after(failure))
            else:
                self._begun = True
                if event is not None:
                    self._collector.add(event)
                    return event
        raise StopIteration

    def text(self, index: int = 0) -> Iterator[str]:
        """The texts of one choice, as they come."""
        for event in self:
            if isinstance(event, Delta) and event.index == index and event.text:
                yield event.text

    def result(self) -> Result:
        """What has come once all has come."""
        for _ in self:
            pass
        return self._collector.result()

    def close(self) -> None:
        """Ends the request. Closing again, or after its end, does nothing."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    def __enter__(self) -> "EventStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncEventStream(AsyncIterator[Event]):
    """As EventStream, for `async for`, `async with` and `await`."""

    def __init__(self, call: Open, attempts: Attempts, target: str) -> None:
        self._open, self._attempts, self._target = call, attempts, target
        self._collector = Collector()
        self._call: Any = None
        self._begun = False
        self._closed = False

    async def __anext__(self) -> Event:
        while not self._closed:
            try:
                if self._call is None:
                    self._call = self._open(self._attempts.begin())
                message = await self._call.read()
            except grpc.aio.AioRpcError as failure:
                if self._begun:
                    self._closed = True
                    raise error_of(failure, self._target) from failure
                self._call = None
                await asyncio.sleep(self._attempts.wait_after(failure))
                continue
            if message is EOF:
                self._closed = True
                break
            self._begun = True
            event = event_of(message)
            if event is not None:
                self._collector.add(event)
                return event
        raise StopAsyncIteration

    async def text(self, index: int = 0) -> AsyncIterator[str]:
        """The texts of one choice, as they come."""
        async for event in self:
            if isinstance(event, Delta) and event.index == index and event.text:
                yield event.text

    async def result(self) -> Result:
        """What has come once all has come."""
        async for _ in self:
            pass
        return self._collector.result()

    def close(self) -> None:
        """Ends the request. Closing again, or after its end, does nothing."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    async def __aenter__(self) -> "AsyncEventStream":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
