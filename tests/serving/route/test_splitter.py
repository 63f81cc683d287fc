"""Batches are split: every server works, full ones are waited for, one that breaks down costs what had begun alone."""

import asyncio
from typing import Any

import pytest

from distaff.serving.client import Finished, InvalidRequestError, OverloadedError, Result, ServerError, UnavailableError
from distaff.serving.front import FrontLimits

from .test_router import SAMPLING, Scene, play

PROMPTS = [f"prompt number {number}" for number in range(12)]


def test_items_are_spread_and_answered_as_one_server_would() -> None:
    async def work(played: Scene) -> None:
        results = await played.client.batch(PROMPTS, **SAMPLING)
        served = played.servers[0].served
        assert [list(_fine(each).token_ids) for each in results] == [served.answer(prompt, 6) for prompt in PROMPTS]
        assert min(played.started()) >= 4 and sum(played.started()) == 12

    play(work)


def test_a_failing_item_fails_alone_with_its_field() -> None:
    async def work(played: Scene) -> None:
        fine, wrong = await played.client.batch(["hello", ""], **SAMPLING)
        assert isinstance(fine, Result) and isinstance(wrong, InvalidRequestError) and wrong.field
        items: list[Any] = [("a", "x", {"request_id": "r", **SAMPLING}), ("b", "y", {"request_id": "r", **SAMPLING})]
        failed = [
            (key, event.code, event.field)
            async for key, event in played.client.batch_stream(items)
            if isinstance(event, ServerError)
        ]
        assert failed == [("b", "ALREADY_EXISTS", "request_id")]

    play(work)


def test_what_a_server_must_refuse_is_refused_by_one() -> None:
    async def work(played: Scene) -> None:
        for items in ([], [("k", "x", SAMPLING), ("k", "y", SAMPLING)]):
            with pytest.raises(InvalidRequestError) as raised:
                async for _ in played.client.batch_stream(items):
                    pass
            assert raised.value.field in ("items", "items.key")

    play(work)


def test_full_servers_are_waited_for() -> None:
    async def work(played: Scene) -> None:
        for server in played.servers:
            server.served.programs.gate.clear()
        batch = asyncio.create_task(played.client.batch(PROMPTS, **SAMPLING))
        await played.until(lambda: all(len(server.served.front.streams()) == 2 for server in played.servers))
        with pytest.raises(OverloadedError):
            await played.client.generate("one more", **SAMPLING)
        for server in played.servers:
            server.served.programs.gate.set()
        assert all(isinstance(each, Result) for each in await batch)

    play(work, limits=FrontLimits(max_streams=2))


def test_a_server_that_breaks_down_costs_what_had_begun_alone() -> None:
    async def work(played: Scene) -> None:
        for server in played.servers:
            server.served.programs.step_seconds = 0.03
        stream = played.client.batch_stream([(f"{n}", f"p{n}", {**SAMPLING, "max_tokens": 20}) for n in range(40)])
        ended: dict[str, Any] = {}
        begun: set[str] = set()
        async for key, event in stream:
            if isinstance(event, ServerError | Finished):
                assert key not in ended
                ended[key] = event
                assert isinstance(event, Finished) or key in begun, "another server could have answered it"
            begun.add(key)
            if len(begun) == 12:
                played.wires[0].cut()
        lost = [error for error in ended.values() if isinstance(error, ServerError)]
        assert len(ended) == 40 and 1 <= len(lost) <= 8  # slots of one server
        assert all(isinstance(error, UnavailableError) for error in lost)

    play(work)


def test_leaving_ends_every_item() -> None:
    async def work(played: Scene) -> None:
        for server in played.servers:
            server.served.programs.step_seconds = 0.01
        items = [(f"{n}", f"p{n}", {**SAMPLING, "max_tokens": 100}) for n in range(30)]
        async with played.client.batch_stream(items) as stream:
            await anext(stream)
        await played.until(lambda: all(upstream.standing.in_flight == 0 for upstream in played.router.upstreams))
        for server in played.servers:
            await server.served.settle()

    play(work)


def _fine(result: Result | ServerError) -> Result:
    assert isinstance(result, Result), result
    return result
