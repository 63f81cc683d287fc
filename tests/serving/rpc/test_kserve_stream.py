"""Requests of one stream beside each other, without a server."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from distaff.serving.rpc.kserve_stream import Send, serve_stream
from distaff.serving.rpc.protos.kserve import inference_pb2 as pb

from .compat import run


async def sent(*ids: str, error: Exception | None = None) -> AsyncGenerator[pb.ModelInferRequest]:
    for id in ids:
        yield pb.ModelInferRequest(id=id)
    if error is not None:
        raise error


async def echo(request: pb.ModelInferRequest, send: Send) -> None:
    await send(pb.ModelStreamInferResponse(infer_response=pb.ModelInferResponse(id=request.id)))


async def forever(request: pb.ModelInferRequest, send: Send) -> None:
    while True:
        await echo(request, send)


async def read(messages: AsyncGenerator[pb.ModelStreamInferResponse]) -> list[str]:
    return [message.infer_response.id async for message in messages]


def test_it_ends_behind_the_last_answer() -> None:
    async def test() -> None:
        assert await read(serve_stream(sent(), echo)) == []
        assert sorted(await read(serve_stream(sent("a", "b"), echo))) == ["a", "b"]

    run(test())


def test_what_reading_fails_with_is_raised() -> None:
    async def test() -> None:
        with pytest.raises(ValueError, match="broken"):
            await read(serve_stream(sent("a", error=ValueError("broken")), echo))

    run(test())


def test_nobody_runs_on_where_nobody_reads() -> None:
    """Messages are made no faster than they are taken, and closing ends those who make them."""

    async def test() -> None:
        before = asyncio.all_tasks()
        messages = serve_stream(sent("a", "b", "c"), forever)
        await anext(messages)
        await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks() - before) == 4  # the reader, and one for each request
        await messages.aclose()
        assert asyncio.all_tasks() == before

    run(test())
