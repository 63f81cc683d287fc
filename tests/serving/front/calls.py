"""What tests of calls have in common: settings, reading to the end, waiting for a stage."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from distaff.serving.front import (
    Delta,
    Event,
    Finished,
    Stream,
)
from distaff.serving.types import SamplingParams

from ..served import Served


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


def params(tokens: int | None = 8, **fields: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": tokens, "seed": 0, **fields})


async def read(stream: Stream) -> list[Event]:
    return [event async for event in stream]


def tokens_of(events: list[Event], index: int = 0) -> list[int]:
    deltas = [event for event in events if isinstance(event, Delta) and event.index == index]
    return [token for delta in deltas for token in delta.token_ids]


def ends(events: list[Event]) -> list[Finished]:
    return [event for event in events if isinstance(event, Finished)]


async def until_running(served: Served, count: int) -> None:
    while served.used_slots < count:
        await asyncio.sleep(0.002)


async def first_token(stream: Stream) -> None:
    async for event in stream:
        if isinstance(event, Delta):
            return
