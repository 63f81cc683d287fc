"""Load over HTTP, against a server whose delays are known."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from distaff.backends.errors import DistaffError, UsageError
from distaff.serving.load.generator import run_closed
from distaff.serving.load.http_transport import HttpTransport
from distaff.serving.load.record import Record
from distaff.serving.load.statistics import summary
from distaff.serving.load.trace import Ask

FIRST, GAP, SLACK = 0.2, 0.6, 0.5  # other work may hold this machine up


def chunk(text: str, reason: str | None = None) -> str:
    return f"data: {json.dumps({'choices': [{'index': 0, 'text': text, 'finish_reason': reason}]})}\n\n"


USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
FINE = [
    FIRST,
    chunk("a"),
    GAP,
    chunk("b"),
    chunk("", "length"),
    f"data: {json.dumps({'choices': [], 'usage': USAGE})}\n\n",
]
DONE = "data: [DONE]\n\n"


class Site:
    """A small HTTP server: it answers each POST with the next script (texts, and seconds), the last for ever."""

    def __init__(self, *scripts: list[str | float], status: int = 200, models: str = '{"data": [{"id": "m"}]}') -> None:
        self.scripts, self.status, self.models = list(scripts), status, models
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[str] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if head.startswith("get"):
            body = self.models.encode()
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        else:
            size = int(head.split("content-length: ")[1].split("\r\n")[0])
            self.bodies.append(json.loads(await reader.readexactly(size)))
            self.headers.append(head)
            writer.write(b"HTTP/1.1 %d X\r\nconnection: close\r\ncontent-type: text/event-stream\r\n\r\n" % self.status)
            for step in self.scripts[min(len(self.bodies), len(self.scripts)) - 1]:
                if isinstance(step, int | float):
                    await asyncio.sleep(step)
                else:
                    writer.write(step.encode())
                    await writer.drain()
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def listening(site: Site) -> AsyncIterator[str]:
    server = await asyncio.start_server(site.handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def measured(site: Site, asks: list[Ask], **options: Any) -> list[Record]:
    async def whole() -> list[Record]:
        async with asyncio.timeout(60), listening(site) as url, HttpTransport(url, **options) as transport:
            return await run_closed(transport, asks, 1)

    return asyncio.run(whole())


def test_known_delays_are_measured_and_tokens_counted() -> None:
    site = Site([*FINE, DONE])
    asks = [Ask("prompt", 2), Ask((5, 6), 2)]
    records = measured(site, asks, token="t")
    value = summary(records)
    assert (value["failed"], value["prompt_tokens"], value["cached_tokens"], value["output_tokens"]) == (0, 10, 8, 4)
    assert FIRST <= value["ttft_ms"]["p50"] / 1e3 < FIRST + SLACK
    for record in records:  # a first token that was seen late shortens the gap behind it
        late = record.ttft - FIRST
        assert GAP - late <= record.gaps[0] < GAP + SLACK
    assert value["itl_ms"]["p50"] / 1e3 == pytest.approx(sum(record.gaps[0] for record in records) / 2)
    body = site.bodies[1]
    assert (body["model"], body["prompt"], body["max_tokens"]) == ("m", [5, 6], 2)
    assert body["stream"] and body["stream_options"] == {"include_usage": True} and body["ignore_eos"]
    assert body["cache_salt"] == site.bodies[0]["cache_salt"] != ""
    assert "authorization: bearer t" in site.headers[0]


def part(role: str | None = None, content: str | None = None, reason: str | None = None) -> str:
    delta = {name: value for name, value in (("role", role), ("content", content)) if value is not None}
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'finish_reason': reason}]})}\n\n"


def test_a_chat() -> None:
    usage = f"data: {json.dumps({'choices': [], 'usage': USAGE})}\n\n"
    site = Site(
        [part("assistant", ""), FIRST, part(content="a"), GAP, part(content=""), part(reason="stop"), usage, DONE]
    )
    (record,) = measured(site, [Ask("hello", 2)], chat=True)
    assert record.error is None and [count for _, count in record.arrivals] == [1, 1]
    assert FIRST <= record.ttft < FIRST + SLACK
    assert GAP - (record.ttft - FIRST) <= record.gaps[0] < GAP + SLACK
    assert site.bodies[0]["messages"] == [{"role": "user", "content": "hello"}] and "prompt" not in site.bodies[0]
    assert site.headers[0].startswith("post /v1/chat/completions ")


def test_certificates_to_trust_must_be_there() -> None:
    with pytest.raises(UsageError, match="ca.pem: cannot be read"):
        HttpTransport("https://127.0.0.1:1", ca=Path("/nowhere/ca.pem"))


def test_failures_are_told_apart() -> None:
    error = 'data: {"error": {"type": "overloaded", "message": "m"}}\n\n'
    site = Site([*FINE], [error, DONE], ["data: {\n\n", DONE], [*FINE, DONE])
    records = measured(site, [Ask("x", 2)] * 4)
    assert [record.error for record in records] == ["the stream ended early", "overloaded", "JSONDecodeError", None]
    assert measured(Site(["no"], status=429), [Ask("x", 2)])[0].error == "HTTP 429"


def test_which_model() -> None:
    assert measured(Site([DONE]), [Ask("x", 1)], model="mine")[0].error is None
    with pytest.raises(UsageError, match="--model"):
        measured(Site(models='{"data": []}'), [])

    async def nobody() -> None:
        async with HttpTransport("http://127.0.0.1:1/v1"):
            pass

    with pytest.raises(DistaffError, match="is it running"):
        asyncio.run(nobody())
