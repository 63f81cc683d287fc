"""The router before two real servers over the fake model: tokens, prefixes, a server that is killed, nobody there."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from distaff.serving.client import (
    AsyncClient,
    DuplicateRequestError,
    RetryPolicy,
    Target,
    UnavailableError,
    UnsupportedCallError,
)
from distaff.serving.route.router import Router
from distaff.serving.route.run import router_of
from distaff.serving.rpc.settings import RpcSettings

from ..rpc.native import Native, native
from .wire import Wire

SAMPLING: dict[str, Any] = {"max_tokens": 6, "seed": 0, "ignore_eos": True}


class Scene:
    """Two servers, the wires to them, the router before them, a client of it."""

    def __init__(self, router: Router, servers: list[Native], wires: list[Wire], client: AsyncClient) -> None:
        self.router, self.servers, self.wires, self.client = router, servers, wires, client

    def started(self) -> list[int]:
        """Requests that each server's engine began."""
        return [server.served.programs.num_admitted for server in self.servers]

    async def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 15
        while not condition():
            assert time.monotonic() < end, "it never came"
            await asyncio.sleep(0.01)


@asynccontextmanager
async def scene(**given: Any) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        options: dict[str, Any] = {"server": lambda served: {"open_admin": True}, **given}
        servers = [await stack.enter_async_context(native(**options)) for _ in range(2)]
        wires = [await stack.enter_async_context(Wire(server.target)) for server in servers]
        router = router_of([Target(wire.target) for wire in wires], RpcSettings(port=0))
        await stack.enter_async_context(router)
        client = AsyncClient(f"127.0.0.1:{router.port}", retry=RetryPolicy(attempts=1))
        played = Scene(router, servers, wires, await stack.enter_async_context(client))
        await played.until(lambda: all(upstream.standing.ready for upstream in router.upstreams))
        yield played


def play(work: Callable[[Scene], Awaitable[None]], **options: Any) -> None:
    """`options` are those of the servers."""

    async def whole() -> None:
        async with asyncio.timeout(60), scene(**options) as played:
            await work(played)

    asyncio.run(whole())


def test_tokens_are_the_engines_and_both_servers_work() -> None:
    async def work(played: Scene) -> None:
        prompts = [f"prompt number {number}" for number in range(8)]
        results = await asyncio.gather(*(played.client.generate(prompt, **SAMPLING) for prompt in prompts))
        served = played.servers[0].served
        assert [list(each.token_ids) for each in results] == [served.answer(prompt, 6) for prompt in prompts]
        assert min(played.started()) >= 3
        streamed = await played.client.generate_stream(prompts[0], **SAMPLING).result()
        assert streamed.token_ids == results[0].token_ids
        assert (await played.client.model()).name == "fake" and await played.client.tokenize("ab")
        assert await played.client.healthy() and await played.client.healthy("distaff.v1.Inference")

    play(work)


def test_prompts_with_a_shared_beginning_find_it_computed() -> None:
    async def work(played: Scene) -> None:
        prefixes = ["a" * 64, "b" * 64]
        first = [await played.client.generate(prefix + "!", **SAMPLING) for prefix in prefixes]
        assert [each.usage.cached_tokens for each in first] == [0, 0] and played.started() == [1, 1]
        for turn in range(3):
            for prefix in prefixes:
                answer = await played.client.generate(f"{prefix}{turn}", **SAMPLING)
                assert answer.usage.cached_tokens >= 56, "it went to the server that does not know it"
        assert played.started() == [4, 4]
        salted = await played.client.generate(prefixes[0] + "!", cache_salt="other", **SAMPLING)
        assert salted.usage.cached_tokens == 0

    play(work)


@pytest.mark.slow
def test_the_load_that_servers_report_counts() -> None:
    async def work(played: Scene) -> None:
        busy, idle = played.servers
        busy.served.programs.gate.clear()
        direct = [asyncio.create_task(_direct(busy, number)) for number in range(5)]
        standing = played.router.upstreams[0].standing
        await played.until(lambda: standing.others_running + standing.others_waiting == 5)
        before = played.started()[1]
        for number in range(4):
            await played.client.generate(f"prompt {number}", **SAMPLING)
        assert played.started()[1] == before + 4
        busy.served.programs.gate.set()
        await asyncio.gather(*direct)
        assert idle.served.front.load().running == 0

    play(work)


async def _direct(server: Native, number: int) -> None:
    async with AsyncClient(server.target) as client:
        await client.generate(f"direct {number}", **SAMPLING)


def test_cancelling_finds_the_request_wherever_it_runs() -> None:
    async def work(played: Scene) -> None:
        for server in played.servers:
            server.served.programs.step_seconds = 0.01
        for name in ("one", "two"):
            stream = played.client.generate_stream(name * 9, max_tokens=100, request_id=name, ignore_eos=True)
            await anext(stream)
            assert await played.client.cancel("nobody", name) == {"nobody": False, name: True}
            stream.close()
        assert played.started() == [1, 1]

    play(work)


def test_names_are_unique_among_servers_and_each_server_is_administered_itself() -> None:
    async def work(played: Scene) -> None:
        for server in played.servers:
            server.served.programs.step_seconds = 0.01
        async with played.client.generate_stream("hello", max_tokens=100, request_id="mine") as stream:
            await anext(stream)
            for prompt in ("one", "two"):
                with pytest.raises(DuplicateRequestError) as raised:
                    await played.client.generate(prompt, request_id="mine")
                assert raised.value.field == "request_id"
        with pytest.raises(UnsupportedCallError, match="ask the server itself"):
            await played.client.drain()
        assert all(server.served.front.state.name == "READY" for server in played.servers)

    play(work)


def test_a_server_that_dies_is_not_missed_and_nobody_there_is_said() -> None:
    async def work(played: Scene) -> None:
        played.servers[0].served.programs.step_seconds = 0.02
        stream = played.client.generate_stream("hello", max_tokens=100, ignore_eos=True)
        await anext(stream)
        broken = played.started().index(1)
        other = played.servers[1 - broken]
        played.wires[broken].cut()
        with pytest.raises(UnavailableError):
            await stream.result()  # it had begun: nobody takes over
        answers = [await played.client.generate(f"p{number}", **SAMPLING) for number in range(4)]
        assert [list(each.token_ids) for each in answers] == [other.served.answer(f"p{n}", 6) for n in range(4)]
        played.wires[1 - broken].cut()
        with pytest.raises(UnavailableError) as raised:
            await played.client.generate("hello", **SAMPLING)
        assert raised.value.retry_after == 1.0 and not await played.client.healthy()

    play(work)


def test_a_server_that_drains_hands_its_requests_on() -> None:
    async def work(played: Scene) -> None:
        draining = asyncio.create_task(played.servers[0].served.front.drain(5))
        answers = [await played.client.generate(f"p{number}", **SAMPLING) for number in range(4)]
        assert len(answers) == 4 and played.started() == [0, 4]
        await draining

    play(work)
