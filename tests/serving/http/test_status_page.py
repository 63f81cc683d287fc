"""The status page in a real browser: it draws what the server does, while the server does it."""

import asyncio
import base64
import contextlib
from pathlib import Path

import pytest

from .asked import listening
from .browser import browsing, find_chromium

CHROMIUM = find_chromium()
POINTS = "(document.querySelector('#{} polyline')?.getAttribute('points') ?? '').split(' ').filter((p) => p).length"
TEXT = "document.getElementById('{}').textContent"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install it, or name one with $CHROMIUM")
def test_the_page_draws_what_the_server_does(tmp_path: Path) -> None:
    assert CHROMIUM is not None

    async def check(chromium: str) -> None:
        async with listening(slots=4) as (served, client, server), browsing(chromium, tmp_path / "profile") as page:
            served.programs.step_seconds = 0.01
            await page.open(f"http://127.0.0.1:{server.port}/")

            async def asks(number: int) -> None:
                while True:
                    await client.post("/v1/completions", json={"prompt": f"prompt {number}", "max_tokens": 60})

            # Twice as many as there are rows, each on its own, so that some always wait for a row.
            work = asyncio.gather(*(asks(number) for number in range(8)))
            for _ in range(200):
                await asyncio.sleep(0.1)
                if await page.evaluate(POINTS.format("itl")) >= 3:
                    break
            shown = {name: await page.evaluate(POINTS.format(name)) for name in ("queue", "batch", "pages", "tokens")}
            heads = {name: await page.evaluate(TEXT.format(name)) for name in ("batch", "itl", "ttft", "tokens")}
            values = {
                name: await page.evaluate(TEXT.format(name)) for name in ("model", "state", "output_tokens", "told")
            }
            picture = await page.send("Page.captureScreenshot", format="png")
            (tmp_path / "page.png").write_bytes(base64.b64decode(picture["data"]))
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work

            assert all(count >= 3 for count in shown.values()), shown
            assert values["model"] == "fake · fake float32 · context 128" and values["state"] == "ready"
            assert int(values["output_tokens"].replace(",", "")) > 0 and values["told"] == ""
            assert heads["batch"].endswith("4 / 4"), "every row of the batch is in use"
            # Steps of 10 ms and more: between two tokens passes at least one of them.
            assert 8 < float(heads["itl"].removeprefix("Time between tokens").split()[0]) < 1000, heads
            assert "ms" in heads["ttft"] and float(heads["tokens"].removeprefix("Tokens generated a second")) > 10

            # The server goes down: the page says so and stays.
            served.front.state, kept = type(served.front.state).DRAINING, served.front.state
            await asyncio.sleep(1.5)
            assert await page.evaluate(TEXT.format("state")) == "draining"
            served.front.state = kept
            assert page.problems == []
            origin = f"http://127.0.0.1:{server.port}/"
            assert all(url.startswith((origin, "data:")) for url in page.requested), page.requested
            await served.settle()

    asyncio.run(asyncio.wait_for(check(CHROMIUM), 90))
