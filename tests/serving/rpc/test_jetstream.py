"""jetstream_proto.Orchestrator over the fake model."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from distaff.serving.front import Call, Stream
from distaff.serving.rpc.jetstream import REFUSED, WITHOUT_EFFECT, Orchestrator
from distaff.serving.rpc.protos.jetstream import jetstream_pb2 as pb
from distaff.serving.rpc.protos.jetstream import jetstream_pb2_grpc
from distaff.serving.types import SamplingParams

from ..served import Served
from .compat import reaching, refused, run, until


class Opened:
    """A front that remembers what it was asked, since the answers of this protocol do not name their seed."""

    def __init__(self, served: Served) -> None:
        self.served, self.calls, self.streams = served, list[Call](), list[Stream]()
        self._open = served.front.open
        served.front.open = self.open

    async def open(self, call: Call) -> Stream:
        self.calls.append(call)
        self.streams.append(await self._open(call))
        return self.streams[-1]

    def expected(self, prompt: str | list[int], tokens: int, choice: int = 0) -> list[int]:
        """What the model says to the last call."""
        admitted = self.streams[-1].admitted
        assert admitted is not None and admitted.params.seed is not None
        return self.served.answer(prompt, tokens, seed=(admitted.params.seed >> 32) + choice)


@asynccontextmanager
async def jetstream(**options: Any) -> AsyncIterator[tuple[Opened, Any]]:
    async with reaching(Orchestrator, **options) as reached:
        yield Opened(reached.served), jetstream_pb2_grpc.OrchestratorStub(reached.channel)


def text(content: str = "abc", tokens: int = 8, **fields: Any) -> pb.DecodeRequest:
    return pb.DecodeRequest(text_content=pb.DecodeRequest.TextContent(text=content), max_tokens=tokens, **fields)


async def read(stub: Any, request: pb.DecodeRequest) -> list[list[tuple[str, list[int]]]]:
    """Text and tokens of each sample of each message."""
    return [
        [(sample.text, list(sample.token_ids)) for sample in message.stream_content.samples]
        async for message in stub.Decode(request)
    ]


def tokens_of(messages: list[list[tuple[str, list[int]]]], sample: int = 0) -> list[int]:
    return [token for message in messages for token in message[sample][1]]


def test_every_field_is_accounted_for() -> None:
    honoured = {"priority", "max_tokens", "text_content", "token_content", "num_samples", "has_bos"}
    assert set(pb.DecodeRequest.DESCRIPTOR.fields_by_name) == honoured | REFUSED.keys() | WITHOUT_EFFECT.keys()


def test_tokens_and_text_are_the_engines() -> None:
    async def test() -> None:
        async with jetstream() as (opened, stub):
            messages = await read(stub, text(priority=3, metadata=pb.DecodeRequest.Metadata(start_time=1.0)))
            expected = opened.expected("abc", 8)
            assert [len(ids) for ((_, ids),) in messages] == [1] * 8 and tokens_of(messages) == expected
            assert "".join(part for ((part, _),) in messages) == opened.served.text(expected)
            assert opened.calls[-1].params == SamplingParams(max_tokens=8, temperature=0.0)
            assert opened.calls[-1].priority == 3

            content = pb.DecodeRequest.TokenContent(token_ids=[1, 2, 3])
            messages = await read(stub, pb.DecodeRequest(token_content=content))
            assert tokens_of(messages) == opened.expected([1, 2, 3], 125)  # to the end of the context

            await read(stub, text("<s>abc", has_bos=True))
            assert opened.calls[-1].prompt == tuple(opened.served.tokenizer.encode("<s>abc", add_special=False))

    run(test())


def test_each_message_has_an_entry_for_every_sample() -> None:
    async def test() -> None:
        async with jetstream() as (opened, stub):
            messages = await read(stub, text(num_samples=3))
            assert all(len(message) == 3 and any(ids for _, ids in message) for message in messages)
            # Samples of one step come together, and each token of a sample in a message of its own.
            assert len(messages) < 3 * 8 and all(len(ids) <= 1 for message in messages for _, ids in message)
            for sample in range(3):
                assert tokens_of(messages, sample) == opened.expected("abc", 8, sample)
            assert opened.calls[-1].params == SamplingParams(max_tokens=8, n=3)  # drawn: greedy ones would be alike

    run(test())


def test_errors_have_their_codes() -> None:
    async def test() -> None:
        async with jetstream() as (opened, stub):
            for wrong, word in (
                (pb.DecodeRequest(), "content"),
                (text(""), "prompt"),
                (text(tokens=-1), "max_tokens"),
                (text(num_samples=-1), "n is -1"),
                (text(session_cache="a"), "session_cache"),
                (text(lora_adapter_id="a"), "lora_adapter_id"),
                (text("a" * 200), "200"),
            ):
                async with refused("INVALID_ARGUMENT", word):
                    await read(stub, wrong)
            opened.served.programs.step_seconds = 0.01
            under_way = asyncio.create_task(read(stub, text(tokens=100)))
            await until(lambda: opened.served.used_slots)
            await opened.served.front.drain(0)
            async with refused("UNAVAILABLE", "went down"):  # the messages cannot say that it is cut short
                await under_way

    run(test())


@pytest.mark.parametrize("how", ["cancel", "disconnect"])
def test_what_is_ended_early_holds_nothing(how: str) -> None:
    async def test() -> None:
        async with reaching(Orchestrator) as reached:
            served = reached.served
            served.programs.step_seconds = 0.005
            stub = jetstream_pb2_grpc.OrchestratorStub(reached.channel)
            reading = asyncio.create_task(read(stub, text(tokens=100)))
            await until(lambda: served.used_slots and served.used_pages)
            if how == "cancel":
                reading.cancel()
            else:
                await reached.channel.close()
            await asyncio.gather(reading, return_exceptions=True)
            await served.check_empty()

    run(test())


def test_health() -> None:
    async def test() -> None:
        async with jetstream() as (opened, stub):
            assert (await stub.HealthCheck(pb.HealthCheckRequest())).is_live
            await opened.served.front.drain(0)
            assert not (await stub.HealthCheck(pb.HealthCheckRequest())).is_live

    run(test())
