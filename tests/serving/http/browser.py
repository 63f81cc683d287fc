"""A headless Chromium, driven by the DevTools protocol over two pipes: nothing but the browser has to be installed."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "chrome-headless-shell")


def find_chromium() -> str | None:
    """The browser of $CHROMIUM, or of the path."""
    names = (os.environ.get("CHROMIUM"), *_NAMES)
    return next((found for name in names if name and (found := shutil.which(name))), None)


class Page:
    """An open page.

    Attributes:
        requested: the address of everything that it asked for.
        problems: exceptions of its scripts, and what its console reports as an error.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requested: list[str] = []
        self.problems: list[str] = []
        self._reader, self._writer = reader, writer
        self._count = 0
        self._session: str | None = None
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._listening = asyncio.create_task(self._listen())

    async def open(self, url: str) -> None:
        """Loads a page."""
        target = await self.send("Target.createTarget", url="about:blank")
        attached = await self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.send(f"{domain}.enable")
        await self.send("Page.navigate", url=url)

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = await self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        answer = self._answers[self._count] = asyncio.get_running_loop().create_future()
        self._writer.write(json.dumps(message).encode() + b"\0")
        return await asyncio.wait_for(answer, 30)

    async def close(self) -> None:
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)

    async def _listen(self) -> None:
        while True:
            message = json.loads((await self._reader.readuntil(b"\0"))[:-1])
            params = message.get("params", {})
            if "id" in message:
                answer = self._answers.pop(message["id"])
                if "error" in message:
                    answer.set_exception(AssertionError(message["error"]))
                else:
                    answer.set_result(message["result"])
            elif message["method"] == "Network.requestWillBeSent":
                self.requested.append(params["request"]["url"])
            elif message["method"] == "Runtime.exceptionThrown":
                self.problems.append(json.dumps(params["exceptionDetails"]))
            elif message["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
                self.problems.append(params["entry"]["text"])


@asynccontextmanager
async def browsing(chromium: str, folder: Path) -> AsyncIterator[Page]:
    """A browser with one page, whose profile lies in `folder`."""
    to_browser, from_browser = os.pipe(), os.pipe()
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")
    # The browser reads commands from descriptor 3 and answers on 4.
    line = f'exec "$0" "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}'
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", line, chromium, *flags, f"--user-data-dir={folder}", "about:blank"),
        pass_fds=(to_browser[0], from_browser[1]),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    os.close(to_browser[0])
    os.close(from_browser[1])
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=2**24)
    reading, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(from_browser[0], "rb")
    )
    writing, protocol = await loop.connect_write_pipe(
        lambda: asyncio.streams.FlowControlMixin(), os.fdopen(to_browser[1], "wb")
    )
    page = Page(reader, asyncio.StreamWriter(writing, protocol, None, loop))
    try:
        yield page
    finally:
        await page.close()
        process.kill()
        await process.wait()
        reading.close()
        writing.close()
        await asyncio.sleep(0)
