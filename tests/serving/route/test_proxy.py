"""Calls through the router: bytes, metadata, status, failover, cancellation; fakes serve that know no message."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from distaff.serving.client.errors import details_of
from distaff.serving.client.target import Target
from distaff.serving.route.asked import Asked
from distaff.serving.route.protocol import Protocol
from distaff.serving.route.router import Router
from distaff.serving.rpc.settings import RpcSettings

from .echo import METHOD, ONCE, Echo

type Scene = tuple[Router, list[Echo], Any]


def joined(answers: object) -> bytes:
    assert isinstance(answers, list)
    return b"+".join(sorted(answers))


def asked(message: bytes) -> Asked:
    """A message that is "ID=PROMPT", or a prompt."""
    name, equals, prompt = message.partition(b"=")
    return Asked(prompt, id=name.decode()) if equals else Asked(message)


PROTOCOL = Protocol(
    readers={METHOD: asked},
    everywhere={"/test.Echo/All": joined},
    repeatable=(METHOD, "/test.Echo/All"),
    refused={"/test.Echo/Own": "ask the server itself"},
)


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def scene(count: int = 2) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        echoes = [await stack.enter_async_context(Echo(name)) for name in "abcd"[:count]]
        router = Router(
            [Target(echo.target) for echo in echoes],
            settings=RpcSettings(port=0),
            protocol=PROTOCOL,
        )
        await stack.enter_async_context(router)
        await until(lambda: all(upstream.standing.ready for upstream in router.upstreams))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{router.port}"))
        yield router, echoes, channel


def run(play: Callable[[Scene], Awaitable[None]], count: int = 2) -> None:
    async def whole() -> None:
        async with asyncio.timeout(30), scene(count) as cast:
            await play(cast)

    asyncio.run(whole())


async def say(channel: Any, message: bytes = b"x", method: str = METHOD) -> bytes:
    return await channel.unary_unary(method)(message)


def _health(channel: Any) -> Any:
    return health_pb2_grpc.HealthStub(channel)


def stream_on(echoes: list[Echo], gap: float = 0.05, copies: int = 1000) -> None:
    """Answers take their time."""
    for echo in echoes:
        echo.gap, echo.copies = gap, copies


async def failure(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value


def test_all_four_kinds_of_method_pass() -> None:
    async def play(cast: Scene) -> None:
        _, echoes, channel = cast
        assert (await say(channel, b"one"))[1:] == b":one"
        echoes[0].copies = echoes[1].copies = 2
        assert [answer[1:] async for answer in channel.unary_stream(METHOD)(b"one")] == [b":one"] * 2
        call = channel.stream_stream(METHOD)()
        await call.write(b"one")
        assert (await call.read())[1:] == (await call.read())[1:] == b":one"  # before the next message is sent
        await call.write(b"two")
        await call.done_writing()
        assert (await call.read())[1:] == (await call.read())[1:] == b":two"
        assert not await call.read()

    run(play)


def test_metadata_the_rest_of_the_time_and_trailers_pass() -> None:
    async def play(cast: Scene) -> None:
        _, echoes, channel = cast
        headers = (("authorization", "Bearer t"), ("traceparent", "00-1-2-03"), ("some-bin", b"\xff"))
        call = channel.unary_unary(METHOD)(b"x", metadata=headers, timeout=7)
        assert await call == b"a:x"
        got = echoes[0].metadata
        assert {name: got[name] for name, _ in headers} == dict(headers) and 0 < got["left"] < 7.5
        assert dict(await call.trailing_metadata())["x-load"] == "a"

    run(play, count=1)


def test_a_status_passes_with_its_details() -> None:
    async def play(cast: Scene) -> None:
        _, echoes, channel = cast
        for code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL):
            for echo in echoes:
                echo.refuse, echo.got = code, []
            error = await failure(say(channel))
            assert error.code() is code and error.details() in ("a refuses", "b refuses")
            assert sum(len(echo.got) for echo in echoes) == 1, "only what may be made good is tried again"
        error = await failure(say(channel, method="/other.Service/Call"))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED

    run(play)


@pytest.mark.parametrize(
    ("code", "retry_after"), [(grpc.StatusCode.UNAVAILABLE, None), (grpc.StatusCode.RESOURCE_EXHAUSTED, 3)]
)
def test_another_server_takes_over_before_the_first_answer(code: grpc.StatusCode, retry_after: int | None) -> None:
    async def play(cast: Scene) -> None:
        _, echoes, channel = cast
        echoes[0].refuse, echoes[0].retry_after = code, retry_after
        answers = [await say(channel, b"m%d" % number) for number in range(4)]
        assert answers == [b"b:m%d" % number for number in range(4)]
        assert len(echoes[0].got) >= 1
        echoes[1].refuse, echoes[1].retry_after = code, retry_after
        error = await failure(say(channel))
        assert error.code() is code and details_of(error.trailing_metadata())[1] == (retry_after or 1)

    run(play)


@pytest.mark.parametrize("away", [0, 1])
def test_a_full_server_is_full_although_another_is_away(away: int) -> None:
    async def play(cast: Scene) -> None:
        _, echoes, channel = cast
        echoes[away].refuse = grpc.StatusCode.UNAVAILABLE
        echoes[1 - away].refuse, echoes[1 - away].retry_after = grpc.StatusCode.RESOURCE_EXHAUSTED, 3
        error = await failure(say(channel))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details_of(error.trailing_metadata())[1] == 3 and all(echo.got for echo in echoes)

    run(play)


def test_what_may_not_be_sent_twice_goes_elsewhere_only_if_the_server_did_nothing() -> None:
    async def play(cast: Scene) -> None:
        _, echoes, channel = cast
        echoes[0].refuse, echoes[0].retry_after = grpc.StatusCode.UNAVAILABLE, 1
        assert [await say(channel, method=ONCE) for _ in range(2)] == [b"b:x"] * 2
        assert len(echoes[0].got) >= 1
        for echo in echoes:
            echo.refuse, echo.retry_after, echo.got = grpc.StatusCode.UNAVAILABLE, None, []
        error = await failure(say(channel, method=ONCE))
        assert error.code() is grpc.StatusCode.UNAVAILABLE and details_of(error.trailing_metadata())[1] is None
        assert sum(len(echo.got) for echo in echoes) == 1, "it may have been done twice"

    run(play)


def test_methods_of_one_server_alone_are_not_routed() -> None:
    async def play(cast: Scene) -> None:
        _, echoes, channel = cast
        error = await failure(say(channel, method="/test.Echo/Own"))
        assert (error.code(), error.details()) == (grpc.StatusCode.UNIMPLEMENTED, "ask the server itself")
        assert not any(echo.got for echo in echoes)

    run(play)


def test_a_name_is_taken_while_its_request_runs_wherever_that_is() -> None:
    async def play(cast: Scene) -> None:
        _, echoes, channel = cast
        stream_on(echoes)
        running = channel.unary_stream(METHOD)(b"mine=x")
        await running.read()
        for _ in range(2):
            error = await failure(say(channel, b"mine=y"))
            assert error.code() is grpc.StatusCode.ALREADY_EXISTS
            assert details_of(error.trailing_metadata())[0] == "request_id"
        assert sum(len(echo.got) for echo in echoes) == 1
        for echo in echoes:
            echo.copies = 1
        assert (await say(channel, b"other=y"))[1:] == b":other=y"
        other = (("authorization", "Bearer another"),)
        assert await channel.unary_unary(METHOD)(b"mine=y", metadata=other)  # names are each caller's own
        running.cancel()
        await until(lambda: any(echo.cancelled for echo in echoes))
        assert (await say(channel, b"mine=z"))[1:] == b":mine=z"

    run(play)


def test_after_the_first_answer_nobody_takes_over() -> None:
    async def play(cast: Scene) -> None:
        _, echoes, channel = cast
        for echo in echoes:
            echo.copies, echo.break_after = 3, 1
        call = channel.unary_stream(METHOD)(b"x")
        assert (await call.read())[1:] == b":x"
        error = await failure(call.read())
        assert error.code() is grpc.StatusCode.UNAVAILABLE and "breaks" in (error.details() or "")
        assert sum(len(echo.got) for echo in echoes) == 1

    run(play)


def test_a_server_that_is_killed_and_comes_back() -> None:
    async def play(cast: Scene) -> None:
        router, echoes, channel = cast
        await echoes[0].server.stop(None)
        assert [await say(channel) for _ in range(3)] == [b"b:x"] * 3
        await until(lambda: not router.upstreams[0].standing.ready)
        await echoes[1].server.stop(None)
        error = await failure(say(channel))
        assert error.code() is grpc.StatusCode.UNAVAILABLE and details_of(error.trailing_metadata()) == (None, 1.0)
        assert "none of the 2 servers" in (error.details() or "")
        await echoes[0].__aenter__()
        await until(lambda: router.upstreams[0].standing.ready)
        assert await say(channel) == b"a:x"

    run(play)


def test_a_server_that_failed_once_and_is_healthy_gets_calls_again() -> None:
    async def play(cast: Scene) -> None:
        router, echoes, channel = cast
        echoes[0].refuse = grpc.StatusCode.UNAVAILABLE
        assert [await say(channel) for _ in range(2)] == [b"b:x"] * 2
        echoes[0].refuse = None
        await until(lambda: router.upstreams[0].standing.ready)
        assert {await say(channel) for _ in range(2)} == {b"a:x", b"b:x"}

    run(play)


@pytest.mark.parametrize("code", [grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED])
def test_a_server_that_answers_without_telling_its_health_gets_calls(
    code: grpc.StatusCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(self: Any, request: Any, context: Any) -> None:
        await context.abort(code, "no")

    monkeypatch.setattr(health.aio.HealthServicer, "Watch", silent)  # pyright: ignore[reportAttributeAccessIssue]

    async def play(cast: Scene) -> None:
        _, _, channel = cast
        assert await say(channel) == b"a:x"

    run(play, count=1)


def test_its_health_is_that_of_any_server() -> None:
    async def play(cast: Scene) -> None:
        router, echoes, channel = cast
        watch: Any = _health(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        await echoes[0].say(False)
        await until(lambda: not router.upstreams[0].standing.ready)
        assert [await say(channel) for _ in range(3)] == [b"b:x"] * 3
        await echoes[1].say(False)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await failure(say(channel))).code() is grpc.StatusCode.UNAVAILABLE
        await echoes[0].say(True)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()

    run(play)


def test_prompts_with_the_same_beginning_stay_together_and_others_spread() -> None:
    async def play(cast: Scene) -> None:
        _, echoes, channel = cast
        beginnings = [bytes([number]) * 640 for number in range(8)]
        for turn in range(3):
            for beginning in beginnings:
                await say(channel, beginning + b"%d" % turn)
        homes = [[message[0] for message in echo.got] for echo in echoes]
        assert {*homes[0]} & {*homes[1]} == set() and [len({*home}) for home in homes] == [4, 4]

    run(play)


def test_cancelling_reaches_the_server() -> None:
    async def play(cast: Scene) -> None:
        router, echoes, channel = cast
        stream_on(echoes)
        call = channel.unary_stream(METHOD)(b"x")
        await call.read()
        assert sum(upstream.standing.in_flight for upstream in router.upstreams) == 1
        call.cancel()
        await until(lambda: sum(echo.cancelled for echo in echoes) == 1)
        await until(lambda: sum(upstream.standing.in_flight for upstream in router.upstreams) == 0)
        assert sum(upstream.standing.pending_tokens for upstream in router.upstreams) == 0

    run(play)


def test_some_methods_ask_every_server() -> None:
    async def play(cast: Scene) -> None:
        _, echoes, channel = cast
        assert await say(channel, method="/test.Echo/All") == b"a:x+b:x"
        echoes[0].refuse = grpc.StatusCode.UNAVAILABLE
        assert await say(channel, method="/test.Echo/All") == b"b:x"
        echoes[0].refuse = echoes[1].refuse = grpc.StatusCode.PERMISSION_DENIED
        assert (await failure(say(channel, method="/test.Echo/All"))).code() is grpc.StatusCode.PERMISSION_DENIED

    run(play)


def test_draining_lets_running_calls_end_and_refuses_new_ones() -> None:
    async def play(cast: Scene) -> None:
        router, echoes, channel = cast
        stream_on(echoes, 0.02, 10)
        answers = aiter(channel.unary_stream(METHOD)(b"x"))
        await anext(answers)
        draining = asyncio.create_task(router.drain(20))
        await asyncio.sleep(0.05)
        error = await failure(say(channel))
        assert error.code() is grpc.StatusCode.UNAVAILABLE and details_of(error.trailing_metadata())[1] == 1.0
        assert len([answer async for answer in answers]) == 9
        await draining

    run(play)
