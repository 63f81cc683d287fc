"""Load over both protocols against our own servers, over the fake model: the figures are those of the engine."""

import asyncio

import pytest

from distaff.serving.client import Target
from distaff.serving.goodput import Goodput
from distaff.serving.http.app import build_app
from distaff.serving.http.server import HttpServer
from distaff.serving.load.arrivals import Pattern
from distaff.serving.load.generator import Transport, run_closed, run_open
from distaff.serving.load.grpc_transport import GrpcTransport
from distaff.serving.load.http_transport import HttpTransport
from distaff.serving.load.statistics import summary
from distaff.serving.load.trace import Ask

from ..rpc.native import native

STEP = 0.01
ASKS = [Ask(tuple(range(number, number + 8)), 5) for number in range(12)]


@pytest.mark.slow
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_every_token_is_counted_and_no_step_is_faster_than_the_device(protocol: str, chat: bool) -> None:
    prompts = [f"prompt {number:02}" for number in range(12)] if chat else [ask.prompt for ask in ASKS]
    asks = [Ask(prompt, 5) for prompt in prompts]
    template = 3 if chat else 0  # <|user|>, <|end|>, <|assistant|>

    async def measured(transport: Transport) -> None:
        moments = Pattern().moments(len(asks), 100.0, seed=0)
        opened = [Ask(ask.prompt, ask.max_tokens, at) for ask, at in zip(asks, moments, strict=True)]
        for records in (await run_closed(transport, asks, 4), await run_open(transport, opened)):
            value = summary(records, goodput=Goodput(ttft=60_000))
            assert value["failed"] == 0 and value["goodput"]["share"] == 1.0
            assert (value["prompt_tokens"], value["output_tokens"]) == (12 * (len(prompts[0]) + template), 12 * 5)
            assert value["ttft_ms"]["p50"] >= STEP * 1e3 and value["tpot_ms"]["p50"] >= STEP * 1e3 * 0.9
            assert all(len(record.arrivals) == 5 for record in records)

    async def whole() -> None:
        async with asyncio.timeout(60), native() as server:
            server.served.programs.step_seconds = STEP
            if protocol == "grpc":
                async with GrpcTransport(Target(server.target), chat=chat, connections=2) as transport:
                    assert transport.vocab_size == server.served.tokenizer.vocab_size
                    await measured(transport)
                return
            http = HttpServer(build_app(server.served.front))
            await http.start()
            async with HttpTransport(f"http://127.0.0.1:{http.port}", chat=chat) as transport:
                await measured(transport)
            await http.stop(0.2)

    asyncio.run(whole())
