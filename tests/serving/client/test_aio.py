"""The client for event loops: it has what the blocking one has, and asks for the same."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from distaff.serving.client import (
    AsyncClient,
    Client,
    DeadlineError,
    InvalidRequestError,
    Result,
    RetryPolicy,
    UnavailableError,
)
from distaff.serving.rpc.protos.distaff.v1 import generation_pb2

from .scripted import Refusal, Scripted, admitted, delta, finished, inference_pb2, served

ANSWER = [admitted(), delta("Hel", 1), delta("lo", 2, 3), finished(tokens=3)]


def asked[T](servicer: Scripted, work: Callable[[AsyncClient], Awaitable[T]], **options: Any) -> T:
    async def whole() -> T:
        async with (
            asyncio.timeout(60),
            served(servicer) as port,
            AsyncClient(f"127.0.0.1:{port}", **{"retry": RetryPolicy(first=0.01), **options}) as client,
        ):
            return await work(client)

    return asyncio.run(whole())


def test_it_has_the_methods_of_the_blocking_client() -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(value).parameters)
            for name, value in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_") or name == "__init__"
        }

    assert methods(Client) == methods(AsyncClient)


def test_events_texts_and_the_result() -> None:
    async def work(client: AsyncClient) -> None:
        async with client.generate_stream("p") as stream:
            assert [type(event).__name__ async for event in stream] == ["Admitted", "Delta", "Delta", "Finished"]
            assert (await stream.result()).text == "Hello"
        assert [text async for text in client.generate_stream("p").text()] == ["Hel", "lo"]
        assert (await client.generate_stream("p").result()).token_ids == (1, 2, 3)

    asked(Scripted(ANSWER), work)


def test_it_tries_again_what_is_safe_and_nothing_else() -> None:
    async def stream(client: AsyncClient) -> str:
        return (await client.generate_stream("p").result()).text

    unary = generation_pb2.GenerateResult(choices=[generation_pb2.Choice(text="x")])
    servicer = Scripted([Refusal("UNAVAILABLE")], [unary])
    assert asked(servicer, lambda client: client.generate("p")).text == "x" and len(servicer.requests) == 2
    servicer = Scripted([Refusal("RESOURCE_EXHAUSTED", retry_after=0.01)], ANSWER)
    assert asked(servicer, stream) == "Hello" and len(servicer.requests) == 2
    servicer = Scripted([admitted(), Refusal("UNAVAILABLE")], ANSWER)
    with pytest.raises(UnavailableError):
        asked(servicer, stream)
    assert len(servicer.requests) == 1
    with pytest.raises(InvalidRequestError) as raised:
        asked(Scripted([Refusal("INVALID_ARGUMENT", field="top_p")]), lambda client: client.generate("p"))
    assert raised.value.field == "top_p"
    with pytest.raises(DeadlineError):
        asked(Scripted([10.0]), lambda client: client.generate("p", timeout=0.2))


def test_a_batch() -> None:
    item = inference_pb2.BatchItemEvent
    error = inference_pb2.ItemError(code="INVALID_ARGUMENT", message="too long", field="prompt")
    script = [item(key="1", event=admitted()), item(key="0", error=error), item(key="1", event=delta("one", 2))]
    zero, one = asked(Scripted(script), lambda client: client.batch(["a", "b"]))
    assert isinstance(zero, InvalidRequestError) and isinstance(one, Result) and one.text == "one"


def test_leaving_a_stream_and_cancelling_a_task_end_the_request() -> None:
    servicer = Scripted([admitted(), delta("a", 1), 30.0])

    async def gone(count: int) -> None:
        async with asyncio.timeout(10):
            while servicer.cancelled < count:
                await asyncio.sleep(0.01)

    async def work(client: AsyncClient) -> None:
        async with client.generate_stream("p") as stream:
            assert await anext(stream.text()) == "a"
        await gone(1)
        task = asyncio.create_task(client.generate_stream("p").result())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gone(2)
        left = client.generate_stream("p")
        await anext(left)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(left.result(), 0.1)
        assert [event async for event in left] == []  # not a CancelledError, which would mean this task
        await gone(3)

    asked(servicer, work)


def test_closing_by_another_task_ends_the_iteration() -> None:
    async def work(client: AsyncClient) -> None:
        stream = client.generate_stream("p")
        texts = asyncio.create_task(_all(stream.text()))
        await asyncio.sleep(0.2)
        stream.close()
        assert await texts == ["a"]

    asked(Scripted([admitted(), delta("a", 1), 30.0]), work)


async def _all(texts: AsyncIterator[str]) -> list[str]:
    return [text async for text in texts]


def test_leaving_a_batch_cancels_it() -> None:
    servicer = Scripted([inference_pb2.BatchItemEvent(key="a", event=admitted()), 30.0])

    async def work(client: AsyncClient) -> None:
        async with client.batch_stream([("a", "p", {})]) as stream:
            assert (await anext(stream))[0] == "a"
        async with asyncio.timeout(10):
            while not servicer.cancelled:
                await asyncio.sleep(0.01)

    asked(servicer, work)
