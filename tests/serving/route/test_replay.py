"""Messages are read once, and given out again until nobody can need them."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from distaff.serving.route import replay as module
from distaff.serving.route.replay import Replay


async def source(*messages: bytes, wait: float = 0.0) -> AsyncIterator[bytes]:
    for message in messages:
        await asyncio.sleep(wait)
        yield message


async def drained(replay: Replay, start: int = 0) -> list[bytes]:
    messages = []
    while (message := await replay.message(start + len(messages))) is not None:
        messages.append(message)
    return messages


def test_each_reader_gets_all() -> None:
    async def whole() -> None:
        replay = Replay(source(b"a", b"b"))
        assert await drained(replay) == await drained(replay) == [b"a", b"b"] and replay.whole

    asyncio.run(whole())


def test_a_reader_that_is_cancelled_loses_nothing() -> None:
    async def whole() -> None:
        replay = Replay(source(b"a", b"b", wait=0.05))
        reader = asyncio.create_task(drained(replay))
        await asyncio.sleep(0.07)
        reader.cancel()
        assert await drained(replay) == [b"a", b"b"]

    asyncio.run(whole())


def test_what_is_not_needed_again_is_dropped() -> None:
    async def whole() -> None:
        replay = Replay(source(b"a", b"b", b"c"))
        assert await replay.message(0) == b"a"
        replay.keep_no_longer()
        assert await replay.message(1) == b"b" and not replay.whole
        assert await drained(replay, 2) == [b"c"]

    asyncio.run(whole())


def test_what_is_too_much_to_keep_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 5)

    async def whole() -> None:
        replay = Replay(source(b"123", b"456", b"7"))
        assert await replay.message(0) == b"123" and replay.whole
        assert await drained(replay, 1) == [b"456", b"7"] and not replay.whole

    asyncio.run(whole())
