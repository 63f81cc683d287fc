"""A server's life over the fake model: ready, draining, signals, a broken device."""

import asyncio
import contextlib
import json
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from distaff.backends.errors import DistaffError
from distaff.serving.front import FrontLimits
from distaff.serving.rpc.protos.distaff.v1 import generation_pb2 as pb
from distaff.serving.rpc.protos.distaff.v1 import inference_pb2_grpc
from distaff.serving.rpc.settings import RpcSettings
from distaff.serving.serve import Ports, Server, ServeSettings

from .rpc.compat import run, until
from .rpc.native import EOF, refusal, request
from .served import Served, serving

ROOT = Path(__file__).resolve().parents[2]
SERVING, NOT_SERVING = 1, 2


class Running:
    """A server in this process, and its client."""

    def __init__(self, served: Served, server: Server, task: "asyncio.Task[int]", ports: Ports, channel: Any) -> None:
        self.served, self.server, self.task, self.ports = served, server, task, ports
        self.inference: Any = inference_pb2_grpc.InferenceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)


@asynccontextmanager
async def running(settings: ServeSettings | None = None, **options: Any) -> AsyncIterator[Running]:
    settings = settings or ServeSettings(rpc=RpcSettings(port=0), http_port=0)
    async with serving(start=False, **options) as served:
        server, ready = Server(served.front, settings), asyncio.Queue[Ports]()
        task = asyncio.create_task(server.run(ready.put_nowait))
        ports = await ready.get()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ports.grpc}") as channel:
            yield Running(served, server, task, ports, channel)
        server.leave(0.0)
        await task


async def collect(call: Any) -> list[pb.GenerateEvent]:
    events: list[pb.GenerateEvent] = []
    while (event := await call.read()) is not EOF:
        events.append(event)
    return events


async def collect_until(call: Any, code: grpc.StatusCode) -> list[pb.GenerateEvent]:
    """What came before the call ended with this status."""
    events: list[pb.GenerateEvent] = []
    with contextlib.suppress(grpc.aio.AioRpcError):
        while (event := await call.read()) is not EOF:
            events.append(event)
    assert await call.code() is code
    return events


def test_both_ports_answer_and_draining_goes_in_order() -> None:
    async def check() -> None:
        async with running(slots=32, pages=2048) as up:
            served = up.served
            page = await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{up.ports.http}/readyz")
            page.close()
            assert page.status == 200
            watch = up.health.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == SERVING
            served.programs.step_seconds = 0.05  # none ends before the last one runs
            calls = [up.inference.Generate(request(f"text {i}", 40)) for i in range(32)]
            await until(lambda: served.front.load().running == 32)
            served.programs.step_seconds = 0.005
            up.server.leave()
            assert (await watch.read()).status == NOT_SERVING
            await until(lambda: served.front.state == "draining")
            ended = await refusal(up.inference.GenerateUnary(request()))
            assert ended.code == "UNAVAILABLE" and ended.retry_after is not None and ended.retry_after > 0
            answers = await asyncio.gather(*map(collect, calls))
            for number, events in enumerate(answers):
                tokens = [token for event in events for token in event.delta.token_ids]
                assert tokens == served.answer(f"text {number}", 40)
            assert await up.task == 0
            assert not served.front.streams() and served.front.counters.ended == {"length": 32}
            assert served.engine.num_requests == served.used_slots == served.used_pages == 0

    run(check())


def test_what_does_not_finish_in_time_tells_what_was_done() -> None:
    async def check() -> None:
        async with running() as up:
            up.served.programs.step_seconds = 0.01
            call = up.inference.Generate(request(tokens=120))
            await until(lambda: up.served.front.load().running == 1)
            await asyncio.sleep(0.05)
            up.server.leave(0.05)
            events = await collect_until(call, grpc.StatusCode.ABORTED)
            assert events[-1].finished.reason == pb.FINISH_REASON_DRAINED
            assert 0 < events[-1].finished.usage.completion_tokens < 120
            assert await up.task == 0

    run(check())


def test_a_broken_device_ends_the_server_with_1() -> None:
    async def check() -> None:
        async with running() as up:
            up.served.programs.failure = RuntimeError("the chip is on fire")
            for _ in range(3):
                ended = await refusal(up.inference.GenerateUnary(request()))
                assert ended.code in ("INTERNAL", "UNAVAILABLE") and "fire" not in ended.message
            assert await up.task == 1

    run(check())


def test_a_device_that_hangs_is_not_waited_for() -> None:
    async def check() -> None:
        async with running(limits=FrontLimits(hang_seconds=0.1)) as up:
            up.served.programs.gate.clear()
            call = asyncio.create_task(refusal(up.inference.GenerateUnary(request())))
            await until(lambda: up.served.programs.num_admitted == 1)  # and so in the step that hangs
            up.server.leave(0.0)
            assert (await call).code == "UNAVAILABLE"
            assert await up.task == 1 and up.served.front.hangs
            up.served.programs.gate.set()
            await asyncio.to_thread(up.served.engine.close)

    run(check())


def test_a_port_that_is_taken_is_refused() -> None:
    async def check() -> None:
        async with running() as up:
            for settings in (
                ServeSettings(rpc=RpcSettings(port=up.ports.grpc), http_port=None),
                ServeSettings(rpc=RpcSettings(port=0), http_port=up.ports.http),
            ):
                async with serving(start=False) as served:
                    with pytest.raises(
                        DistaffError, match=str(up.ports.grpc if settings.http_port is None else "port 0")
                    ):
                        await Server(served.front, settings).run(lambda ports: None)

    run(check())


@asynccontextmanager
async def process(**options: Any) -> AsyncIterator[tuple[asyncio.subprocess.Process, Any, int]]:
    """tests.serving.serve_fake as a process, a stub for it, and its port."""
    made = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.serving.serve_fake", json.dumps(options), cwd=ROOT,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert made.stdout is not None
        word, port, _ = (await made.stdout.readline()).decode().split()
        assert word == "ready"
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield made, inference_pb2_grpc.InferenceStub(channel), int(port)
        assert made.stdout.at_eof() or await made.stdout.read() == b"", "one line and no more"
    finally:
        if made.returncode is None:
            made.kill()
            await made.wait()


def test_sigterm_drains_and_exits_with_0() -> None:
    async def check() -> None:
        async with process(step_seconds=0.002) as (made, inference, _):
            call = inference.Generate(request(tokens=100))
            await call.read()
            made.send_signal(signal.SIGTERM)
            events = await collect(call)
            assert events[-1].finished.completion_tokens == 100
            assert await made.wait() == 0

    run(check())


@pytest.mark.slow
def test_a_second_sigterm_does_not_wait() -> None:
    async def check() -> None:
        async with process(step_seconds=0.05) as (made, inference, _):
            call = inference.Generate(request(tokens=100))
            await call.read()
            made.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            made.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(made.wait(), 2) == 143
            call.cancel()

    run(check())


@pytest.mark.slow
def test_a_killed_server_is_unavailable_until_another_takes_its_port() -> None:
    """Whoever waits is told at once; nothing that the dead one leaves is in the way of the next."""

    async def check() -> None:
        async with process(step_seconds=0.05) as (made, inference, port):
            calls = [inference.Generate(request(f"text {i}", 100)) for i in range(8)]
            for call in calls:
                await call.read()
            made.kill()
            for call in calls:
                with pytest.raises(grpc.aio.AioRpcError) as cut:
                    await collect(call)
                assert cut.value.code() is grpc.StatusCode.UNAVAILABLE
            assert await made.wait() == -signal.SIGKILL
            async with process(port=port) as (second, _, again):
                assert again == port
                answer = await inference.GenerateUnary(request(tokens=5), wait_for_ready=True, timeout=20)
                assert len(answer.choices[0].token_ids) == 5
                second.terminate()
                assert await second.wait() == 0

    run(check(), 90)


@pytest.mark.slow
def test_a_device_that_hangs_keeps_no_process_from_ending() -> None:
    async def check() -> None:
        options = {"step_seconds": 1000, "grace": 0.2, "limits": {"hang_seconds": 0.5}}
        async with process(**options) as (made, inference, _):
            call = inference.Generate(request())
            await asyncio.sleep(0.5)
            made.send_signal(signal.SIGTERM)
            assert (await refusal(call)).code == "UNAVAILABLE"
            assert await asyncio.wait_for(made.wait(), 20) == 1

    run(check(), 60)
