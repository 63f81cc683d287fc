"""Every sort of client at once, a minute in CI, ten by `scripts/test --soak`: nothing piles up, no answer is wrong."""

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable

import grpc
import pytest

from distaff.serving.rpc.protos.distaff.v1.inference_pb2_grpc import InferenceStub

from ..http2 import DATA, END_HEADERS, END_STREAM, HEADERS, call_headers, frame, message
from .abused import GENERATE, Abused, abused, answer, request

type Client = Callable[[Abused, InferenceStub, random.Random], None]


def _job(chance: random.Random) -> tuple[str, int]:
    return f"job {chance.randrange(200)}" + " of some length" * chance.randrange(3), chance.randrange(1, 60)


def normal(server: Abused, stub: InferenceStub, chance: random.Random) -> None:
    prompt, tokens = _job(chance)
    events = stub.Generate(request(prompt, tokens), timeout=60)
    found = [token for event in events for token in event.delta.token_ids]
    assert found == answer(prompt, tokens), f"{prompt!r} got {found}"


def cancelling(server: Abused, stub: InferenceStub, chance: random.Random) -> None:
    prompt, tokens = _job(chance)
    call = stub.Generate(request(prompt, tokens), timeout=60)
    with contextlib.suppress(grpc.RpcError):
        for number, _ in enumerate(call):
            if number >= chance.randrange(20):
                call.cancel()


def hurried(server: Abused, stub: InferenceStub, chance: random.Random) -> None:
    with contextlib.suppress(grpc.RpcError):
        stub.GenerateUnary(request(*_job(chance)), timeout=chance.uniform(0.001, 0.1))


def slow(server: Abused, stub: InferenceStub, chance: random.Random) -> None:
    prompt, tokens = _job(chance)
    found: list[int] = []
    for event in stub.Generate(request(prompt, tokens), timeout=60):
        found += event.delta.token_ids
        time.sleep(chance.uniform(0, 0.02))
    assert found == answer(prompt, tokens), f"{prompt!r} got {found}"


def crashing(server: Abused, stub: InferenceStub, chance: random.Random) -> None:
    connection = server.connect()
    connection.call(GENERATE, request(*_job(chance)).SerializeToString())
    for number, _ in enumerate(connection.frames(1.0)):
        if number >= chance.randrange(30):
            break
    connection.close(rudely=True)


def malformed(server: Abused, stub: InferenceStub, chance: random.Random) -> None:
    body = chance.choice(
        [
            message(b"\xff\xff\xff\x07"),
            message(b"\x0a\x02\xff\xfe"),
            message(b"", length=2**31),
            message(b"\x00" * 50, compressed=1),
            chance.randbytes(40),
        ]
    )
    connection = server.connect()
    connection.send(frame(HEADERS, call_headers(GENERATE), flags=END_HEADERS, stream=1))
    connection.send(frame(DATA, body, flags=END_STREAM, stream=1))
    for each in connection.frames(5.0):
        if each.kind == HEADERS:  # the status
            break
    connection.close()


def refused(server: Abused, stub: InferenceStub, chance: random.Random) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.GenerateUnary(request("", chance.randrange(1, 9)), timeout=60)
    assert isinstance(caught.value, grpc.Call) and caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


CLIENTS: tuple[Client, ...] = (normal, normal, normal, cancelling, hurried, slow, crashing, malformed, refused)


def soak(seconds: float) -> Counter[str]:
    """Runs all clients for so long, over a cache that is too small for all of them; says how often each was served."""
    done: Counter[str] = Counter()
    errors: list[str] = []
    stop = threading.Event()
    engine = {"pages": 90, "slots": 6, "max_len": 128}
    limits = {"stall_seconds": 2.0}

    def loop(client: Client, seed: int) -> None:
        chance = random.Random(seed)
        with server.stub() as stub:
            while not stop.is_set():
                try:
                    client(server, stub, chance)
                except BaseException as error:
                    errors.append(f"{client.__name__}: {error!r}")
                    return
                done[client.__name__] += 1

    with abused(engine=engine, limits=limits, step_seconds=0.002) as server:
        with server.stub() as stub:  # what is made once is no leak: threads, arenas, the prefix tree at its full size
            chance = random.Random(0)
            for client in CLIENTS * 10:
                client(server, stub, chance)
        before = server.counts()
        threads = [
            threading.Thread(target=loop, args=(client, seed), daemon=True) for seed, client in enumerate(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end and not errors:
            time.sleep(0.2)
        stop.set()
        for thread in threads:
            thread.join(90)
            assert not thread.is_alive(), "a client hangs"
        assert not errors, errors
        server.settle(before, seconds=20, megabytes=40)
        assert done["normal"] > 0 and len(done) == len(set(CLIENTS))
    return done


@pytest.mark.slow
def test_a_minute_of_every_sort_of_client_leaves_nothing_behind() -> None:
    soak(60)


@pytest.mark.soak
def test_ten_minutes_of_every_sort_of_client_leave_nothing_behind() -> None:
    soak(600)
