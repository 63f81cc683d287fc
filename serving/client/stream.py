"""What a call brings as it comes, for callers that block and for callers that await."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
from grpc.aio import EOF  # pyright: ignore[reportAttributeAccessIssue]  # not in its stubs

from .attempts import Attempts
from .collector import Collector
from .errors import ServerError
from .reading import Item
from .results import Delta, Event, Result

Open = Callable[[float | None], Any]
"""Begins a call that may take so many seconds."""


class _Running[T]:
    """A call under way: its tries, and its end.

    Args:
        read: makes what is given out of a message; None is left out.
    """

    def __init__(self, call: Open, attempts: Attempts, read: Callable[[Any], T | None]) -> None:
        self._open, self._attempts, self._read = call, attempts, read
        self._call: Any = None
        self._begun = self._closed = False

    def close(self) -> None:
        """Ends the call. Closing again, or after its end, does nothing."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    def _begin(self) -> Any:
        """The call, begun anew where the last try has failed."""
        if self._call is None:
            self._call = self._open(self._attempts.begin())
        return self._call

    def _value_of(self, message: Any) -> T | None:
        self._begun = True
        return self._read(message)

    def _wait_after(self, failure: grpc.RpcError) -> float:
        """Seconds until the next try.

        Raises:
            ServerError: there is none.
        """
        self._call = None
        try:
            if self._begun:
                raise self._attempts.error_of(failure) from failure
            return self._attempts.wait_after(failure)
        except ServerError:
            self._closed = True
            raise


class MessageStream[T](_Running[T], Iterator[T]):
    """Iterates over what comes. A call that could not begin is tried again; one that has begun raises its ServerError.

    Use it as a context manager, or `close()` it, where it may be left early: the server stops then.
    """

    def __next__(self) -> T:
        while not self._closed:
            try:
                message = next(self._begin())
            except StopIteration:
                break
            except grpc.RpcError as failure:
                if self._closed:  # by another thread
                    break
                time.sleep(self._wait_after(failure))
            else:
                value = self._value_of(message)
                if value is not None:
                    return value
        self._closed = True
        raise StopIteration

    def __enter__(self) -> "MessageStream[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EventStream(MessageStream[Event]):
    """Iterates over events: Admitted, Deltas, one Finished for each choice. `text()` iterates over texts instead, and
    `result()` waits for all."""

    def __init__(self, call: Open, attempts: Attempts, read: Callable[[Any], Event | None]) -> None:
        super().__init__(call, attempts, read)
        self._collector = Collector()

    def __next__(self) -> Event:
        event = super().__next__()
        self._collector.add(event)
        return event

    def __enter__(self) -> "EventStream":
        return self

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


BatchStream = MessageStream[Item]
"""Iterates over (key, event) of a batch's items, where a ServerError stands for the last event of one that failed."""


class AsyncMessageStream[T](_Running[T], AsyncIterator[T]):
    """As MessageStream, for `async for` and `async with`. A task that is cancelled while it waits ends the call."""

    async def __anext__(self) -> T:
        while not self._closed:
            try:
                message = await self._begin().read()
            except grpc.aio.AioRpcError as failure:
                await asyncio.sleep(self._wait_after(failure))
                continue
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if self._closed and task is not None and not task.cancelling():  # it was closed by another task
                    break
                self.close()
                raise
            if message is EOF:
                break
            value = self._value_of(message)
            if value is not None:
                return value
        self._closed = True
        raise StopAsyncIteration

    async def __aenter__(self) -> "AsyncMessageStream[T]":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class AsyncEventStream(AsyncMessageStream[Event]):
    """As EventStream, for `async for`, `async with` and `await`."""

    def __init__(self, call: Open, attempts: Attempts, read: Callable[[Any], Event | None]) -> None:
        super().__init__(call, attempts, read)
        self._collector = Collector()

    async def __anext__(self) -> Event:
        event = await super().__anext__()
        self._collector.add(event)
        return event

    async def __aenter__(self) -> "AsyncEventStream":
        return self

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


AsyncBatchStream = AsyncMessageStream[Item]
"""As BatchStream."""
