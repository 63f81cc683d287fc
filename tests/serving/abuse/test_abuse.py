"""Clients that misbehave in ways that no library lets them; each time nobody else notices and nothing stays held.

Slow readers, deadlines of a millisecond, idle connections, peers that vanish, a cache too small for everybody, and
floods of frames. What the fast tests of tests/serving/rpc show is not shown again.
"""

import contextlib
import resource
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from ..http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    Connection,
    call_headers,
    frame,
    message,
    settings,
)
from .abused import GENERATE, Abused, abused, answer, request

pytestmark = pytest.mark.slow


def test_readers_that_stop_lose_their_requests_and_others_notice_nothing() -> None:
    """Their windows hold a handful of tokens; the server keeps a few more, joins the rest, and gives up."""
    limits = {"stall_seconds": 0.5, "max_buffered_events": 8}
    with (
        abused(limits=limits, step_seconds=0.002, engine={"max_len": 2048, "pages": 4096, "slots": 64}) as server,
        server.unharmed(),
    ):
        readers = [server.connect(preface=False) for _ in range(63)]
        for reader in readers:
            reader.send(PREFACE + settings(window=256))
            reader.call(GENERATE, request("slow", 2000).SerializeToString())
        end = time.monotonic() + 20
        while server.counts()["stalled"] < len(readers):
            assert time.monotonic() < end, f"only {server.counts()['stalled']} readers were given up"
            time.sleep(0.05)
        for reader in readers:
            reader.close()


def test_deadlines_of_a_millisecond_take_no_slot_for_long() -> None:
    with abused(step_seconds=0.002) as server, server.unharmed():

        def hurry(_: int) -> grpc.StatusCode:
            with server.stub() as stub:
                call = stub.Generate(request("hurry", 100), timeout=0.001)
                with contextlib.suppress(grpc.RpcError):
                    list(call)
                return call.code()

        with ThreadPoolExecutor(8) as pool:
            codes = set(pool.map(hurry, range(200)))
        assert codes <= {grpc.StatusCode.DEADLINE_EXCEEDED}


def idle_connections(server: Abused, number: int) -> None:
    """Opens connections that do nothing, half of what an attacker needs, and lets go of them."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft > number + 500, f"this process may open {soft} files, the test needs {number + 500}"
    before = server.counts()
    idle = [server.connect() for _ in range(number)]
    half_open = [server.connect(preface=False) for _ in range(number // 10)]
    with server.stub() as stub:
        tokens = [
            token for event in stub.Generate(request("between", 16), timeout=20) for token in event.delta.token_ids
        ]
    assert tokens == answer("between", 16)
    grown = (server.counts()["memory"] - before["memory"]) / 2**20
    assert grown < 0.1 * number, f"{number} idle connections cost {grown:.0f} MB"
    closed = [connection.is_closed(6) for connection in half_open]
    assert all(closed), f"{closed.count(False)} connections that never said anything are still open"
    for connection in idle + half_open:
        connection.close()


def test_a_thousand_idle_connections_cost_little() -> None:
    with abused(settings={"handshake_seconds": 2.0}) as server, server.unharmed(megabytes=100, seconds=20):
        idle_connections(server, 1000)


@pytest.mark.soak
def test_eight_thousand_idle_connections_cost_little() -> None:
    with abused(settings={"handshake_seconds": 2.0}) as server, server.unharmed(megabytes=800, seconds=60, gap=5.0):
        idle_connections(server, 8000)


def test_a_peer_that_vanishes_gives_its_slot_back() -> None:
    """It takes everything, and no longer answers; TCP alone would not notice for hours."""
    settings = {"keepalive_seconds": 1.0, "keepalive_timeout_seconds": 1.0}
    engine = {"max_len": 4096, "pages": 4096}
    with abused(settings=settings, step_seconds=0.005, engine=engine) as server, server.unharmed(seconds=15):
        gone = [server.connect() for _ in range(4)]
        for connection in gone:
            connection.call(GENERATE, request("gone", 4000).SerializeToString())
        end = time.monotonic() + 5
        while server.counts()["streams"] < len(gone):
            assert time.monotonic() < end
            time.sleep(0.02)
        end = time.monotonic() + 10
        while server.counts()["streams"] > 1:  # the bystander's
            assert time.monotonic() < end, "vanished peers still hold their slots"
            time.sleep(0.05)
        for connection in gone:
            connection.close()


def test_a_cache_too_small_for_everybody_serves_everybody() -> None:
    """Eight answers of which four fit, again and again; a request that fits never is refused at once."""
    tokens, prompts = 100, [f"{number:02} oversubscribed" for number in range(24)]
    engine = {"pages": 130, "slots": 8, "max_len": 1024}
    with abused(engine=engine) as server, server.unharmed(gap=10.0), server.stub() as stub:
        with pytest.raises(grpc.RpcError) as refused:
            stub.GenerateUnary(request("too long", 10_000), timeout=20)
        assert isinstance(refused.value, grpc.Call) and refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with ThreadPoolExecutor(len(prompts)) as pool:
            results = list(pool.map(lambda prompt: stub.GenerateUnary(request(prompt, tokens), timeout=60), prompts))
        for prompt, result in zip(prompts, results, strict=True):
            assert list(result.choices[0].token_ids) == answer(prompt, tokens)
        assert server.counts()["preemptions"] > 0, "the cache was not too small"


def ping_flood(connection: Connection) -> None:
    for _ in range(2000):
        if not connection.send(frame(PING, b"12345678")):
            return


def settings_flood(connection: Connection) -> None:
    for _ in range(2000):
        if not connection.send(settings(window=65535) * 10):
            return


def rapid_reset(connection: Connection) -> None:
    """CVE-2023-44487."""
    body = frame(DATA, message(request("reset", 100).SerializeToString()), flags=END_STREAM, stream=1)
    for number in range(1, 20_001, 2):
        headers = frame(HEADERS, call_headers(GENERATE), flags=END_HEADERS, stream=number)
        data = body[:5] + struct.pack(">I", number) + body[9:]
        reset = frame(RST_STREAM, struct.pack(">I", 8), stream=number)
        if not connection.send(headers + data + reset):
            return


def continuation_flood(connection: Connection) -> None:
    """CVE-2024-27316: headers that never end."""
    connection.send(frame(HEADERS, call_headers(GENERATE), stream=1))
    for _ in range(20_000):
        if not connection.send(frame(CONTINUATION, b"\x00\x01a\x7e" + b"b" * 126, stream=1)):
            return


def empty_data_flood(connection: Connection) -> None:
    connection.send(frame(HEADERS, call_headers(GENERATE), flags=END_HEADERS, stream=1))
    for _ in range(5000):
        if not connection.send(frame(DATA, stream=1) * 10):
            return


def many_streams(connection: Connection) -> None:
    """Ten thousand calls that never end their requests."""
    for number in range(1, 20_001, 2):
        if not connection.send(frame(HEADERS, call_headers(GENERATE), flags=END_HEADERS, stream=number)):
            return


@pytest.fixture(scope="module")
def flooded() -> Iterator[Abused]:
    """One server for all the floods."""
    with abused(engine={"slots": 8}) as server:
        yield server


@pytest.mark.parametrize(
    "flood", [ping_flood, settings_flood, rapid_reset, continuation_flood, empty_data_flood, many_streams]
)
def test_floods_of_frames_end_with_their_connection(flood: Callable[[Connection], None], flooded: Abused) -> None:
    """Answers are read away meanwhile, so that the server is never saved by a full window."""
    with flooded.unharmed(gap=5.0, megabytes=150, seconds=20):
        connection = flooded.connect()
        kinds: list[int] = []
        reader = threading.Thread(target=lambda: kinds.extend(each.kind for each in connection.frames(30)), daemon=True)
        reader.start()
        flood(connection)
        if flood is ping_flood:
            reader.join(10)
            assert GOAWAY in kinds, "pings without end are taken"
        connection.close(rudely=True)
        reader.join(10)
        time.sleep(0.5)
        before = flooded.counts()["cpu"]
        time.sleep(1.0)
        used = flooded.counts()["cpu"] - before
        assert used < 1.3, f"the server still works at what the flood left: {used:.2f} s of CPU in a second"
