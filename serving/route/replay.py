"""The messages of a call, kept for as long as they may have to be sent once more."""

import asyncio
from collections.abc import AsyncIterator

MAX_BYTES = 64 * 2**20
"""Of one call's messages: what is longer is sent once, and no further server is tried."""


class Replay:
    """Reads a client's messages once and gives them out as often as needed.

    Attributes:
        whole: whether all that was read so far is still there.
    """

    def __init__(self, source: AsyncIterator[bytes]) -> None:
        self._source = source
        self._messages: list[bytes] = []
        self._dropped = 0
        self._bytes = 0
        self._reading: asyncio.Task[bytes | None] | None = None
        self._ended = False
        self._keeping = True

    @property
    def whole(self) -> bool:
        return not self._dropped

    async def message(self, number: int) -> bytes | None:
        """The message with this number, from 0; None behind the last one. One reader at a time, in order."""
        while number >= self._dropped + len(self._messages):
            if self._ended:
                return None
            if self._reading is None:
                self._reading = asyncio.ensure_future(self._read())
            # A reader that is cancelled, since its server failed, leaves the message to the next one.
            message = await asyncio.shield(self._reading)
            self._reading = None
            if message is None:
                self._ended = True
            else:
                self._messages.append(message)
                self._bytes += len(message)
        message = self._messages[number - self._dropped]
        if not self._keeping or self._bytes > MAX_BYTES:
            self._drop(number + 1)
        return message

    def keep_no_longer(self) -> None:
        """Nothing will be sent again: what is given out from now on is dropped."""
        self._keeping = False

    def close(self) -> None:
        """Stops reading."""
        if self._reading is not None:
            self._reading.cancel()

    def _drop(self, end: int) -> None:
        count = end - self._dropped
        self._bytes -= sum(map(len, self._messages[:count]))
        del self._messages[:count]
        self._dropped = end

    async def _read(self) -> bytes | None:
        return await anext(self._source, None)
