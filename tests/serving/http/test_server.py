"""What listens: free ports, addresses in use, connections that hold on for nothing, stopping amid requests."""

import asyncio
import contextlib
import signal
from itertools import pairwise

import httpx2
import pytest
from starlette.types import Receive, Scope, Send

from distaff.serving.http import server as server_module
from distaff.serving.http.app import build_app
from distaff.serving.http.exchange import until_disconnect
from distaff.serving.http.server import HttpServer

from ..served import serving
from .asked import listening, run


@pytest.fixture
def looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_LOOK_SECONDS", 0.02)


def test_it_takes_a_free_port_leaves_signals_alone_and_says_what_is_taken() -> None:
    async def check() -> None:
        before = signal.getsignal(signal.SIGTERM)
        async with listening() as (served, client, server):
            assert server.port > 0 and signal.getsignal(signal.SIGTERM) is before
            assert (await client.get("/readyz")).status_code == 200
            assert "server" not in (await client.get("/readyz")).headers
            second = HttpServer(build_app(served.front), port=server.port)
            with pytest.raises(OSError, match="in use"):
                await second.start()
        with pytest.raises(httpx2.ConnectError):
            async with httpx2.AsyncClient() as other:
                await other.get(f"http://127.0.0.1:{server.port}/readyz")

    run(check())


def test_tokens_come_one_by_one() -> None:
    async def check() -> None:
        async with listening() as (served, client, _):
            served.programs.step_seconds = 0.02
            body = {"prompt": "abc", "max_tokens": 10, "stream": True}
            loop, arrivals = asyncio.get_running_loop(), []
            async with client.stream("POST", "/v1/completions", json=body) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        arrivals.append(loop.time())
            assert len(arrivals) == 11
            # Each came with its own step, not at the end.
            gaps = [b - a for a, b in pairwise(arrivals[:10])]
            assert sum(gap > 0.005 for gap in gaps) > 5, gaps

    run(check())


@pytest.mark.usefixtures("looking_often")
def test_connections_without_a_request_are_closed_and_others_are_kept() -> None:
    async def check() -> None:
        async with listening(server={"idle_seconds": 0.3}) as (served, client, server):
            served.programs.step_seconds = 0.03
            silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(5)]
            silent[0][1].write(b"GET / HTTP/1.1\r\nHost:")  # half a head
            long = asyncio.ensure_future(client.post("/v1/completions", json={"prompt": "a", "max_tokens": 30}))
            for reader, writer in silent:
                with contextlib.suppress(ConnectionError):
                    assert await asyncio.wait_for(reader.read(), 5) == b""
                writer.close()
            assert not long.done()
            assert (await long).status_code == 200

    run(check())


@pytest.mark.usefixtures("looking_often")
def test_who_does_not_read_is_cut() -> None:
    ended = asyncio.Event()

    async def endless(send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
                await asyncio.sleep(0)
        finally:
            ended.set()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await until_disconnect(endless(send), receive)

    async def check() -> None:
        server = HttpServer(app, stall_seconds=0.2)
        await server.start()
        reading, reader = await asyncio.open_connection("127.0.0.1", server.port)
        stuck = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        for writer in (reader, stuck[1]):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        while server.num_connections == 2:  # who reads stays
            assert await reading.read(65536)
            await asyncio.sleep(0.001)
        assert server.num_connections == 1
        reader.close()
        await asyncio.wait_for(ended.wait(), 5)
        stuck[1].close()
        await server.stop(1)

    run(check())


def test_stopping_gives_requests_their_time_and_no_more() -> None:
    async def check() -> None:
        async with serving() as served:
            served.programs.step_seconds = 0.01
            for grace, tokens, fine in ((5.0, 20, True), (0.1, 120, False)):
                server = HttpServer(build_app(served.front))
                await server.start()
                async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=20) as client:
                    body = {"prompt": "abc", "max_tokens": tokens}
                    request = asyncio.ensure_future(client.post("/v1/completions", json=body))
                    while not served.front.streams():
                        await asyncio.sleep(0.002)
                    await server.stop(grace)
                    if fine:
                        assert (await request).json()["usage"]["completion_tokens"] == tokens
                    else:
                        with pytest.raises(httpx2.HTTPError):
                            await request
                await served.check_empty()

    run(check())
