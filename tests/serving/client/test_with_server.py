"""The client and a real server, over the fake model: the tokens are the engine's, and every call has its answer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from distaff.serving.client import (
    AsyncClient,
    Client,
    DuplicateRequestError,
    InvalidRequestError,
    OverloadedError,
    Result,
    RetryPolicy,
    ServerError,
    UnknownNameError,
)
from distaff.serving.front import FrontLimits

from ..rpc.native import Native, native
from ..served import VOCAB


def play(work: Callable[[Native, AsyncClient], Awaitable[None]], **options: Any) -> None:
    async def whole() -> None:
        async with asyncio.timeout(60), native(**options) as server:
            retry = RetryPolicy(attempts=1)
            async with AsyncClient(server.target, retry=retry) as client:
                await work(server, client)

    asyncio.run(whole())


def test_tokens_are_the_engines_by_every_way() -> None:
    async def work(server: Native, client: AsyncClient) -> None:
        want = server.served.answer("hello there", 12)
        sampling: dict[str, Any] = {"max_tokens": 12, "seed": 0, "ignore_eos": True}
        unary = await client.generate("hello there", **sampling)
        stream = client.generate_stream("hello there", **sampling)
        text = "".join([text async for text in stream.text()])
        ids = await client.tokenize("hello there", add_special=False)
        by_ids, by_text = await client.batch([ids, "hello there"], **sampling)
        assert isinstance(by_ids, Result) and isinstance(by_text, Result)
        results = (unary, await stream.result(), by_ids, by_text)
        assert [list(each.token_ids) for each in results] == [want] * 4
        assert {each.text for each in results} == {text} == {await client.detokenize(want)}
        assert (unary.finish_reason, unary.seed, unary.usage.completion_tokens) == ("length", 0, 12)
        assert by_text.usage.cached_tokens > 0  # the prompt was known by then

        def blocking() -> Result:
            with Client(server.target) as other:
                return other.generate_stream("hello there", **sampling).result()

        assert (await asyncio.to_thread(blocking)).token_ids == tuple(want)

    play(work)


def test_a_conversation_is_the_prompt_that_the_template_makes() -> None:
    async def work(server: Native, client: AsyncClient) -> None:
        messages = [{"role": "user", "content": "hi"}]
        text, ids = await client.apply_chat_template(messages)
        assert text == "<|user|>hi<|end|><|assistant|>"
        answer = await client.generate(messages, max_tokens=6, seed=0, ignore_eos=True)
        assert list(answer.token_ids) == server.served.answer(ids, 6)

    play(work)


def test_scores_embeddings_models_and_load() -> None:
    async def work(server: Native, client: AsyncClient) -> None:
        score = await client.score("hello", num_top=2)
        assert len(score.token_ids) == 5 and len(score.logprobs) == 4 and len(score.logprobs[0].top) == 2
        assert score.total == pytest.approx(sum(entry.logprob for entry in score.logprobs))
        assert len((await client.embed("hello")).vector) > 0
        model = await client.model()
        assert model == (await client.models())[0] and (model.name, model.vocab_size) == (
            "fake",
            server.served.tokenizer.vocab_size,
        )
        assert "top_p" in {name for name, *_ in model.parameters} and model.vocab_size >= VOCAB
        with pytest.raises(UnknownNameError) as raised:
            await client.model("other")
        assert raised.value.code == "NOT_FOUND"
        load = await client.load()
        assert (load.running, load.waiting) == (0, 0) and load.pages_total > 0
        assert await client.healthy() and await client.healthy("distaff.v1.Inference")
        assert await client.flush_prefix_cache() >= 0

    play(work, server=lambda served: {"open_admin": True})


def test_errors_name_the_field() -> None:
    async def work(server: Native, client: AsyncClient) -> None:
        for options, field in (({"top_p": 1.5}, "top_p"), ({"temperature": float("nan")}, "temperature")):
            with pytest.raises(InvalidRequestError) as raised:
                await client.generate("hello", **options)
            assert field in (raised.value.field or "") and field in str(raised.value)
        with pytest.raises(InvalidRequestError):
            await client.generate("")
        good, bad = await client.batch(["hello", [VOCAB + 10**6]], max_tokens=2, seed=0)
        assert isinstance(good, Result) and isinstance(bad, ServerError)

    play(work)


def test_a_running_request_is_cancelled_by_its_name() -> None:
    async def work(server: Native, client: AsyncClient) -> None:
        server.served.programs.step_seconds = 0.01
        async with client.generate_stream("hello", max_tokens=100, request_id="mine", ignore_eos=True) as stream:
            await anext(stream)
            with pytest.raises(DuplicateRequestError):
                await client.generate("hello", request_id="mine")
            assert await client.cancel("mine", "unknown") == {"mine": True, "unknown": False}
            with pytest.raises(ServerError) as raised:
                await stream.result()
            assert raised.value.code == "CANCELLED"
        await server.served.settle()

    play(work)


@pytest.mark.slow
def test_a_full_server_says_when_to_come_back_and_the_client_does() -> None:
    async def work(server: Native, client: AsyncClient) -> None:
        server.served.programs.gate.clear()
        running = asyncio.create_task(client.generate("hello", max_tokens=4, seed=0))
        while not server.served.front.streams():
            await asyncio.sleep(0.01)
        with pytest.raises(OverloadedError) as raised:
            await client.generate("hello", max_tokens=4)
        assert raised.value.retry_after is not None
        async with AsyncClient(server.target, retry=RetryPolicy(attempts=9, first=0.05)) as patient:
            waiting = asyncio.create_task(patient.generate("hello", max_tokens=4, seed=0))
            await asyncio.sleep(0.1)
            server.served.programs.gate.set()
            assert (await waiting).token_ids == (await running).token_ids

    play(work, limits=FrontLimits(max_streams=1))
