"""Sends requests and takes their times: at moments of their own (open loop), or so many at once (closed loop)."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from .record import Record
from .trace import Ask

Clock = Callable[[], float]


class Transport(Protocol):
    """How one request reaches a server."""

    async def send(self, ask: Ask, record: Record, clock: Clock) -> None:
        """Sends it and enters in `record` what comes, by `clock`: arrivals, tokens, or the error."""
        ...


async def run_open(
    transport: Transport,
    asks: Sequence[Ask],
    *,
    on_end: Callable[[Record], None] | None = None,
    drain: float | None = None,
) -> list[Record]:
    """Sends each request at its moment, whether or not earlier ones are answered.

    Args:
        drain: seconds after the last sending in which answers count; those that are not complete by then are cancelled
            and failed. None waits for all.
    """
    clock = _clock()
    tasks: list[asyncio.Task[None]] = []
    records: list[Record] = []
    for ask in asks:
        await _until(ask.at, clock)
        record = Record(ask.at)
        records.append(record)
        tasks.append(asyncio.create_task(_one(transport, ask, record, clock, on_end)))
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=drain)
        for task in late:
            task.cancel()
        for task in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(task, Exception):
                raise task
    return records


async def run_closed(
    transport: Transport,
    asks: Sequence[Ask],
    concurrency: int,
    *,
    on_end: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Keeps `concurrency` requests on their way: the next is sent when one has ended."""
    clock = _clock()
    waiting = iter(asks)
    records: list[Record] = []

    async def worker() -> None:
        for ask in waiting:
            record = Record(clock())
            records.append(record)
            await _one(transport, ask, record, clock, on_end)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(asks))):
            group.create_task(worker())
    return records


async def _one(
    transport: Transport, ask: Ask, record: Record, clock: Clock, on_end: Callable[[Record], None] | None
) -> None:
    record.sent = clock()
    try:
        await transport.send(ask, record, clock)
    except asyncio.CancelledError:
        record.error = "not complete in time"
        raise
    finally:
        record.ended = clock()
        if on_end is not None:
            on_end(record)


def _clock() -> Clock:
    start = time.perf_counter()
    return lambda: time.perf_counter() - start


async def _until(moment: float, clock: Clock) -> None:
    while (left := moment - clock()) > 0:
        await asyncio.sleep(left)
