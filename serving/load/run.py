"""A whole measurement: connect, warm up, send, add up."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...backends.errors import DistaffError, UsageError
from ..client.target import Target
from ..goodput import Goodput
from ..workload import Span, uniform_workload
from .arrivals import Pattern, scaled
from .generator import run_closed, run_open
from .grpc_transport import GrpcTransport
from .http_transport import HttpTransport
from .overhead import Overhead
from .record import Record
from .statistics import summary
from .sweep import Measured, Plan, find_knee
from .trace import Ask, read_trace
from .words import WORDS, spelled

_LEAST_REQUESTS = 16  # at each rate of a sweep: fewer say nothing of a share
_WARM_SEED = 2**32

type Transport = GrpcTransport | HttpTransport
Report = dict[str, Any]
OnProgress = Callable[[int, int], None]
"""Told how many of how many requests have ended."""


@dataclass(frozen=True)
class Work:
    """What is asked for: random prompts of evenly distributed lengths, or the requests of a trace.

    Attributes:
        vocab_size: token ids are drawn below it; None takes what the server says.
    """

    requests: int = 64
    prompt_len: Span = (32, 384)
    output_len: Span = (16, 192)
    shared_prefix: int = 0
    seed: int = 0
    trace: Path | None = None
    vocab_size: int | None = None

    def asks(self, vocab_size: int | None, *, as_text: bool = False) -> tuple[Ask, ...]:
        """The requests, for a server that knows so many tokens; random prompts are words if it takes texts alone.

        Raises:
            UsageError: nobody knows how many tokens there are.
        """
        size = len(WORDS) if as_text else self.vocab_size or vocab_size
        if self.trace is not None:
            return read_trace(self.trace, vocab_size=size, as_text=as_text, seed=self.seed)
        if size is None:
            raise UsageError("the server does not say how many tokens it knows: give --vocab-size N")
        items = uniform_workload(
            requests=self.requests,
            prompt_len=self.prompt_len,
            output_len=self.output_len,
            seed=self.seed,
            vocab_size=size,
            shared_prefix=self.shared_prefix,
        )
        return tuple(Ask(spelled(item.prompt) if as_text else item.prompt, item.max_tokens) for item in items)


@dataclass(frozen=True)
class Load:
    """How a server is asked.

    Attributes:
        target: HOST:PORT for gRPC; http://HOST:PORT for the OpenAI API.
        model: what requests name.
        token, ca: as Client takes them.
        chat: prompts are messages of a user.
        connections: of gRPC, each of which takes requests in turn.
        concurrency: requests on their way in a closed loop; None is an open loop.
        rate: requests a second of an open loop; None keeps the moments of the trace.
        drain: seconds after the last sending in which answers of an open loop count.
        warm_up: requests before, that do not count.
    """

    target: str
    work: Work
    model: str = ""
    token: str | None = None
    ca: Path | None = None
    chat: bool = False
    connections: int = 1
    concurrency: int | None = None
    rate: float | None = None
    pattern: Pattern = Pattern()
    drain: float | None = None
    warm_up: int = 4

    @property
    def protocol(self) -> str:
        return "http" if self.target.startswith(("http://", "https://")) else "grpc"

    def transport(self) -> Transport:
        """New connections."""
        if self.protocol == "http":
            return HttpTransport(self.target, model=self.model or None, token=self.token, ca=self.ca, chat=self.chat)
        target = Target(self.target, self.token, self.ca)
        return GrpcTransport(target, model=self.model, chat=self.chat, connections=self.connections)


@dataclass(frozen=True)
class Outcome:
    """What a load brought."""

    load: Load
    records: Sequence[Record]
    overhead: Overhead

    def report(self, goodput: Goodput | None) -> Report:
        """
        Raises:
            DistaffError: nothing was answered at all.
        """
        report = summary(self.records, goodput=goodput)
        if report["failed"] == report["requests"]:
            raise DistaffError(f"{self.load.target} answered none of {report['requests']} requests: {report['errors']}")
        messages = sum(len(record.arrivals) for record in self.records)
        return {**report, "generator": self.overhead.report(messages)}


def measure(load: Load, goodput: Goodput | None, on_progress: OnProgress) -> tuple[Report, Sequence[Record]]:
    """Sends one load and adds up what came.

    Raises:
        DistaffError: nothing was answered at all.
    """

    async def whole() -> tuple[Report, Sequence[Record]]:
        async with load.transport() as transport:
            await _warm_up(load, transport)
            outcome = await _send(load, transport, on_progress)
            return {**_described(load, transport.model), **outcome.report(goodput)}, outcome.records

    return asyncio.run(whole())


def sweep(load: Load, plan: Plan, goodput: Goodput | None, *, on_rate: Callable[[float], OnProgress]) -> Report:
    """Looks for the knee; each rate has prompts of its own."""

    async def whole() -> Report:
        async with load.transport() as transport:
            await _warm_up(load, transport)
            turn = 0

            async def at_rate(rate: float) -> Measured:
                nonlocal turn
                turn += 1
                count = max(_LEAST_REQUESTS, round(rate * plan.seconds))
                work = replace(load.work, requests=count, seed=load.work.seed + turn)
                return (await _send(replace(load, work=work, rate=rate), transport, on_rate(rate))).report

            found = await find_knee(at_rate, plan, goodput)
            return {**_described(load, transport.model), "share": plan.share, **found}

    return asyncio.run(whole())


async def _warm_up(load: Load, transport: Transport) -> None:
    if load.warm_up:
        work = replace(load.work, requests=load.warm_up, seed=load.work.seed + _WARM_SEED)
        asks = work.asks(transport.vocab_size, as_text=load.chat)[: load.warm_up]
        records = await run_closed(transport, asks, load.warm_up)
        if not any(record.succeeded for record in records):
            raise DistaffError(f"{load.target} answered no request of the warm-up: {records[0].error}")


async def _send(load: Load, transport: Transport, on_progress: OnProgress) -> Outcome:
    asks = load.work.asks(transport.vocab_size, as_text=load.chat)
    done = 0

    def on_end(_: Record) -> None:
        nonlocal done
        done += 1
        on_progress(done, len(asks))

    transport.begin_run()
    async with Overhead() as overhead:
        if load.concurrency is not None:
            records = await run_closed(transport, asks, load.concurrency, on_end=on_end)
        else:
            records = await run_open(transport, _timed(load, asks), on_end=on_end, drain=load.drain)
    return Outcome(load, records, overhead)


def _timed(load: Load, asks: tuple[Ask, ...]) -> list[Ask]:
    """The requests with the moments of an open loop."""
    if load.rate is None:
        return list(asks)
    if load.work.trace is not None and len(asks) > 1:
        moments = scaled([ask.at for ask in asks], load.rate)
    else:
        moments = load.pattern.moments(len(asks), load.rate, load.work.seed)
    return [replace(ask, at=moment) for ask, moment in zip(asks, moments, strict=True)]


def _described(load: Load, model: str) -> Report:
    return {
        "target": load.target,
        "protocol": load.protocol,
        "chat": load.chat,
        "connections": load.connections if load.protocol == "grpc" else None,
        "model": model,
        "loop": "open" if load.concurrency is None else "closed",
        "offered_rate": load.rate,
        "offered_concurrency": load.concurrency,
        "trace": None if load.work.trace is None else str(load.work.trace),
        "seed": load.work.seed,
    }
