"""Load over gRPC, against a server whose delays are known."""

import asyncio
from typing import Any

import pytest

from distaff.serving.client import Target, UnavailableError
from distaff.serving.load.generator import run_closed
from distaff.serving.load.grpc_transport import GrpcTransport
from distaff.serving.load.record import Record
from distaff.serving.load.statistics import summary
from distaff.serving.load.trace import Ask

from ..client.scripted import Refusal, Scripted, admitted, delta, finished, served

FIRST, GAP, SLACK = 0.2, 0.1, 0.1


def measured(servicer: Scripted, asks: list[Ask], **options: Any) -> tuple[list[Record], GrpcTransport]:
    async def whole() -> tuple[list[Record], GrpcTransport]:
        async with (
            asyncio.timeout(60),
            served(servicer) as port,
            GrpcTransport(Target(f"127.0.0.1:{port}"), **options) as transport,
        ):
            return await run_closed(transport, asks, 4), transport

    return asyncio.run(whole())


def test_known_delays_are_measured_and_tokens_counted() -> None:
    servicer = Scripted([admitted(cached=3), FIRST, delta("a", 1), GAP, delta("bc", 2, 3), GAP, finished(tokens=3)])
    records, transport = measured(servicer, [Ask("prompt", 3), Ask((5, 6), 7)], options={"priority": 2})
    value = summary(records)
    assert value["failed"] == 0 and value["output_tokens"] == 6
    assert (value["prompt_tokens"], value["cached_tokens"]) == (10, 6)
    assert FIRST <= value["ttft_ms"]["p50"] / 1e3 < FIRST + SLACK
    assert GAP <= value["itl_ms"]["p50"] / 1e3 < GAP + SLACK and len(records[0].gaps) == 1
    assert value["tpot_ms"]["p50"] == pytest.approx(value["itl_ms"]["p50"] / 2)
    assert all(record.ended >= record.arrivals[-1][0] + GAP for record in records)
    texts, ids = sorted(servicer.requests, key=lambda request: request.WhichOneof("prompt") != "text")
    assert (texts.text, list(ids.token_ids.ids)) == ("prompt", [5, 6])
    assert (texts.sampling.max_tokens, ids.sampling.max_tokens, ids.sampling.ignore_eos, ids.priority) == (
        3,
        7,
        True,
        2,
    )
    assert (transport.model, transport.vocab_size) == ("fake", 100)
    again = Scripted([admitted(), delta("a", 1), finished(tokens=1)])
    measured(again, [Ask("prompt", 3)])
    assert texts.cache.salt == ids.cache.salt != again.requests[0].cache.salt, "a run may find another's prompts"


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
