"""`distaff route`: its one line, its end by signals, and what it refuses. The servers behind it know no message."""

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import pytest

from ..serving.route.echo import METHOD, Echo

PROGRAM = "from distaff.scripts.main import main; main()"


class Routed:
    """The command as a process, its servers, and a channel to it."""

    def __init__(self, process: asyncio.subprocess.Process, echoes: list[Echo], channel: grpc.aio.Channel) -> None:
        self.process, self.echoes, self.channel = process, echoes, channel

    async def say(self, message: bytes) -> bytes:
        return await self.channel.unary_unary(METHOD)(message)


@asynccontextmanager
async def routed(*options: str) -> AsyncIterator[Routed]:
    async with Echo("a") as a, Echo("b") as b:
        command = [sys.executable, "-c", PROGRAM, "route", a.target, b.target, "--port", "0", *options]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        try:
            assert process.stdout is not None
            line = (await process.stdout.readline()).decode()
            assert line.startswith("distaff route: grpc 127.0.0.1:") and line.endswith(", 2 servers\n")
            async with grpc.aio.insecure_channel(line.split()[3].rstrip(",")) as channel:
                cast = Routed(process, [a, b], channel)
                await _until_it_serves(cast)
                yield cast
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _until_it_serves(cast: Routed) -> None:
    while True:
        try:
            await cast.say(b"x")
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.05)
        else:
            return


def play(work: Callable[[Routed], Awaitable[None]], *options: str) -> None:
    async def whole() -> None:
        async with asyncio.timeout(60), routed(*options) as cast:
            await work(cast)

    asyncio.run(whole())


@pytest.mark.slow
def test_a_signal_lets_running_calls_end() -> None:
    async def work(cast: Routed) -> None:
        for echo in cast.echoes:
            echo.gap, echo.copies = 0.05, 10
        answers = aiter(cast.channel.unary_stream(METHOD)(b"x"))
        await anext(answers)
        cast.process.send_signal(signal.SIGTERM)
        assert len([answer async for answer in answers]) == 9
        assert await cast.process.wait() == 0

    play(work)


@pytest.mark.slow
def test_a_second_signal_does_not_wait() -> None:
    async def work(cast: Routed) -> None:
        for echo in cast.echoes:
            echo.gap, echo.copies = 0.05, 10_000
        call = cast.channel.unary_stream(METHOD)(b"x")
        await call.read()
        cast.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert cast.process.returncode is None
        cast.process.send_signal(signal.SIGTERM)
        assert await cast.process.wait() == 143

    play(work)


@pytest.mark.slow
def test_the_grace_is_the_longest() -> None:
    async def work(cast: Routed) -> None:
        for echo in cast.echoes:
            echo.gap, echo.copies = 0.05, 10_000
        call = cast.channel.unary_stream(METHOD)(b"x")
        await call.read()
        cast.process.send_signal(signal.SIGTERM)
        assert await cast.process.wait() == 0

    play(work, "--grace", "0.2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "TARGET"),
        (["127.0.0.1:1", "127.0.0.1:1"], "named twice"),
        (["nowhere"], "HOST:PORT"),
        (["127.0.0.1:1", "--tls-cert", "c.pem"], "--tls-cert and --tls-key belong together"),
        (["127.0.0.1:1", "--tls-client-ca", "c.pem"], "--tls-client-ca needs --tls-cert"),
        (["127.0.0.1:1", "--token-file", "/nowhere"], "cannot be read"),
        (["127.0.0.1:1", "--tls-cert", "/nowhere/c.pem", "--tls-key", "/nowhere/k.pem"], "/nowhere"),
    ],
)
def test_wrong_use_is_one_message(
    distaff: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert distaff("route", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and "Traceback" not in err


def test_a_port_that_is_taken(distaff: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert distaff("route", "127.0.0.1:1", "--port", str(taken.getsockname()[1])) == 1
    assert "is it taken?" in capsys.readouterr().err
