"""What the transport puts up with: sizes, pings, and connections that never become one."""

import asyncio
import socket
import time

from distaff.serving.rpc.settings import RpcSettings

from .. import http2
from .compat import run
from .native import native, refusal, request


def test_frames_and_metadata_beyond_their_limits_are_refused() -> None:
    async def check() -> None:
        settings = RpcSettings(port=0, max_message_bytes=100_000)
        async with native(settings=settings) as reached:
            assert (await refusal(reached.inference.GenerateUnary(request("x" * 200_000)))).code == "RESOURCE_EXHAUSTED"
            for size, code in ((8, None), (64, "RESOURCE_EXHAUSTED"), (1024, "RESOURCE_EXHAUSTED")):
                metadata = (("big", "x" * size * 1000),)
                call = reached.inference.GenerateUnary(request(tokens=1), metadata=metadata)
                if code is None:
                    await call
                else:
                    assert (await refusal(call)).code == code
            many = tuple((f"key-{number}", "x") for number in range(1000))
            assert (await refusal(reached.inference.GenerateUnary(request(), metadata=many))).code == (
                "RESOURCE_EXHAUSTED"
            )
            await reached.inference.GenerateUnary(request(tokens=1))

    run(check())


def test_quiet_clients_may_ping_and_floods_end_their_connection() -> None:
    """The argument that limits pings really does, and bears those of quiet clients."""
    ping = http2.frame(http2.PING, b"12345678")

    def pinged(port: int, count: int, pause: float) -> list[int]:
        with http2.Connection(port) as connection:
            for _ in range(count):
                if not connection.send(ping):
                    break
                time.sleep(pause)
            return [frame.kind for frame in connection.frames(0.3)]

    async def check() -> None:
        settings = RpcSettings(port=0, client_ping_seconds=0.05)
        async with native(settings=settings) as reached:
            patient = await asyncio.to_thread(pinged, reached.server.port, 12, 0.08)
            assert http2.GOAWAY not in patient and patient.count(http2.PING) >= 12
            assert http2.GOAWAY in await asyncio.to_thread(pinged, reached.server.port, 200, 0.001)
            await reached.inference.GenerateUnary(request(tokens=2))

    run(check())


def test_connections_that_never_become_one_are_closed() -> None:
    def closed(port: int, sent: bytes) -> bool:
        with socket.create_connection(("127.0.0.1", port), timeout=4) as sock:
            sock.sendall(sent)
            try:
                while sock.recv(4096):
                    pass
            except ConnectionError:
                pass
            except TimeoutError:
                return False
            return True

    async def check() -> None:
        async with native(settings=RpcSettings(port=0, handshake_seconds=0.3, idle_seconds=1.0)) as reached:
            port = reached.server.port
            sent = (b"", http2.PREFACE, http2.PREFACE + http2.frame(http2.SETTINGS), b"\x16\x03\x01garbage")
            assert await asyncio.gather(*(asyncio.to_thread(closed, port, each) for each in sent)) == [True] * 4
            await reached.inference.GenerateUnary(request(tokens=2))

    run(check())
