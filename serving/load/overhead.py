"""What the load generator itself costs: a generator that is slower than the server measures itself."""

import asyncio
import contextlib
import time
from typing import Any

from ..percentiles import percentiles_ms

_EVERY_SECONDS = 0.01
BUSY_SHARE = 0.8
LATE_MS = 10.0
"""Of a core, and of its loop at p90: above either messages wait for the generator, and their times are its own."""


class Overhead:
    """Watches this process while it sends load. Use it as an async context manager, around nothing else.

    Its loop stamps messages when it comes to them: as late as it comes to a timer, which is looked at all the while.
    """

    def __init__(self) -> None:
        self._late: list[float] = []
        self._cpu = self._wall = 0.0

    async def __aenter__(self) -> "Overhead":
        self._watching = asyncio.create_task(self._watch())
        await asyncio.sleep(0)  # it looks from now on
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._cpu, self._wall = time.process_time() - self._cpu, time.perf_counter() - self._wall
        self._watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watching

    def report(self, messages: int) -> dict[str, Any]:
        """As JSON knows it.

        Args:
            messages: that came with tokens meanwhile.
        """
        share = self._cpu / self._wall if self._wall else 0.0
        late = percentiles_ms(self._late)
        return {
            "cpu_s": self._cpu,
            "cpu_share": share,
            "cpu_us_per_message": self._cpu / messages * 1e6 if messages else 0.0,
            "loop_late_ms": late,
            "limits": share > BUSY_SHARE or late["p90"] > LATE_MS,
        }

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _EVERY_SECONDS
            await asyncio.sleep(_EVERY_SECONDS)
            self._late.append(max(0.0, loop.time() - due))
