"""Load over gRPC, against a server whose delays are known."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from distaff.backends.errors import UsageError
from distaff.serving.client import Target, UnavailableError
from distaff.serving.load.generator import Clock, run_closed
from distaff.serving.load.grpc_transport import GrpcTransport
from distaff.serving.load.record import Record
from distaff.serving.load.statistics import summary
from distaff.serving.load.trace import Ask

from ..client.scripted import Refusal, Scripted, admitted, delta, finished, served

FIRST, GAP, SLACK = 0.2, 0.6, 0.5  # other work may hold this machine up


def measured(servicer: Scripted, asks: list[Ask], **options: Any) -> tuple[list[Record], GrpcTransport]:
    async def whole() -> tuple[list[Record], GrpcTransport]:
        async with (
            asyncio.timeout(60),
            served(servicer) as port,
            GrpcTransport(Target(f"127.0.0.1:{port}"), **options) as transport,
        ):
            return await run_closed(transport, asks, 4), transport

    return asyncio.run(whole())


class Timed(GrpcTransport):
    """Gives the server the run's clock."""

    def __init__(self, servicer: Scripted, target: Target) -> None:
        super().__init__(target)
        self._servicer = servicer

    async def send(self, ask: Ask, record: Record, clock: Clock) -> None:
        self._servicer.clock = clock
        await super().send(ask, record, clock)


def test_known_delays_are_measured_and_tokens_counted() -> None:
    servicer = Scripted([admitted(cached=3), FIRST, delta("a", 1), GAP, delta("bc", 2, 3), GAP, finished(tokens=3)])

    async def whole() -> tuple[list[Record], GrpcTransport]:
        async with (
            asyncio.timeout(60),
            served(servicer) as port,
            Timed(servicer, Target(f"127.0.0.1:{port}")) as transport,
        ):
            return await run_closed(transport, [Ask("prompt", 3), Ask((5, 6), 7)], 1), transport

    records, transport = asyncio.run(whole())
    value = summary(records)
    assert value["failed"] == 0 and value["output_tokens"] == 6
    assert (value["prompt_tokens"], value["cached_tokens"]) == (10, 6)
    assert FIRST <= value["ttft_ms"]["p50"] / 1e3 < FIRST + SLACK
    for record, (_, *handed) in zip(records, servicer.handed, strict=True):
        seen = [*record.moments, record.ended]
        assert all(0 <= at - since < SLACK for at, since in zip(seen, handed, strict=True))
        assert record.gaps == [record.moments[1] - record.moments[0]]
    assert value["itl_ms"]["p50"] / 1e3 == pytest.approx(sum(record.gaps[0] for record in records) / 2)
    assert value["tpot_ms"]["p50"] == pytest.approx(value["itl_ms"]["p50"] / 2)
    texts, ids = sorted(servicer.requests, key=lambda request: request.WhichOneof("prompt") != "text")
    assert (texts.text, list(ids.token_ids.ids)) == ("prompt", [5, 6])
    assert (texts.sampling.max_tokens, ids.sampling.max_tokens, ids.sampling.ignore_eos) == (3, 7, True)
    assert (transport.model, transport.vocab_size) == ("fake", 100)
    assert texts.cache.salt == ids.cache.salt != ""


ONE = [admitted(), delta("a", 1), finished(tokens=1)]


def test_a_run_does_not_find_what_another_has_asked() -> None:
    servicer = Scripted(ONE)

    async def whole() -> None:
        async with served(servicer) as port, GrpcTransport(Target(f"127.0.0.1:{port}")) as transport:
            for _ in range(2):
                transport.begin_run()
                await run_closed(transport, [Ask("x", 1)] * 2, 1)

    asyncio.run(whole())
    salts = [request.cache.salt for request in servicer.requests]
    assert salts[0] == salts[1] != salts[2] == salts[3]


def test_messages_without_tokens_are_no_arrivals() -> None:
    records, _ = measured(Scripted([admitted(), delta("a", 1), delta("b"), finished(tokens=1)]), [Ask("x", 1)])
    assert len(records[0].arrivals) == 1


def test_requests_go_over_each_connection_in_turn() -> None:
    servicer = Scripted(ONE)
    measured(servicer, [Ask("x", 1)] * 9, connections=3)
    assert sorted(Counter(servicer.peers).values()) == [3, 3, 3]
    measured(single := Scripted(ONE), [Ask("x", 1)] * 9)
    assert len(set(single.peers)) == 1


def test_a_prompt_may_be_a_message() -> None:
    servicer = Scripted(ONE)
    measured(servicer, [Ask("hello", 1)], chat=True)
    assert [(each.role, each.content) for each in servicer.requests[0].chat.messages] == [("user", "hello")]
    with pytest.raises(ExceptionGroup) as raised:
        measured(servicer, [Ask((1, 2), 1)], chat=True)
    assert raised.group_contains(UsageError, match="--chat")


def test_refusals_are_counted_and_not_tried_again() -> None:
    refused = [Refusal("RESOURCE_EXHAUSTED", retry_after=0.01)]
    broken = [admitted(), delta("a", 1), Refusal("INTERNAL")]
    servicer = Scripted(refused, broken, [admitted(), delta("a", 1), finished(tokens=1)])
    records, _ = measured(servicer, [Ask("x", 1)] * 3)
    assert summary(records)["errors"] == {"RESOURCE_EXHAUSTED": 1, "INTERNAL": 1} and len(servicer.requests) == 3


def test_nobody_there() -> None:
    async def whole() -> None:
        async with GrpcTransport(Target("127.0.0.1:1")):
            pass

    with pytest.raises(UnavailableError, match="is a server running"):
        asyncio.run(whole())
