"""Times of requests, and what they say: percentiles, goodput, and how close the engine came to the machine's limits."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from ..backends.errors import DistaffError
from ..models.config import ModelConfig
from ..models.costs import Steps, work_of
from .goodput import Goodput
from .limits import MachineLimits
from .metrics import Metrics, shares
from .percentiles import rate_per_s
from .results import FinishReason, TokenEvent
from .times import Times, times_report
from .types import Request

_IDLE_SECONDS = 0.0005  # between looks at an engine that waits for its batch to fill
_STUCK_SECONDS = 300.0

_COUNTERS = ("prefix_query_tokens", "prefix_hit_tokens", "preemptions", "compiles", "unexpected_compiles")


@dataclass
class RequestTimes(Times):
    """When one request's tokens could be read, in seconds from the moment that all were submitted."""

    prompt_tokens: int
    submitted: float = 0.0
    tokens: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def start(self) -> float:
        return self.submitted

    @property
    def moments(self) -> list[float]:
        return self.tokens

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def succeeded(self) -> bool:
        return self.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)


@dataclass(frozen=True)
class Round:
    """The whole workload, run once; `before` and `after` are snapshots of the engine's metrics."""

    requests: tuple[RequestTimes, ...]
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    cpu_seconds: float = 0.0  # of all threads of this process

    @property
    def elapsed(self) -> float:
        """Seconds from the first submission to the last token."""
        return max((times.tokens[-1] for times in self.requests if times.tokens), default=0.0)

    @property
    def output_tokens(self) -> int:
        return sum(len(times.tokens) for times in self.requests)


@runtime_checkable
class EventStream(Protocol):
    """What `submit` returns, as far as it is needed here."""

    def poll(self) -> Iterable[TokenEvent]:
        """The events that have come since the last time; does not wait."""
        ...


@runtime_checkable
class Runnable(Protocol):
    """The engine, as far as it is needed here."""

    @property
    def metrics(self) -> Metrics: ...

    def submit(self, request: Request) -> EventStream: ...

    def flush(self) -> None: ...

    def step(self) -> bool: ...


def run_round(
    engine: Runnable, requests: Sequence[Request], *, clock: Callable[[], float] = time.perf_counter
) -> Round:
    """Submits everything at once and steps until all of it has ended.

    Raises:
        DistaffError: nothing came out of the engine for five minutes.
    """
    before = engine.metrics.snapshot()
    cpu = time.process_time()
    start = clock()
    times: list[RequestTimes] = []
    running: list[tuple[EventStream, RequestTimes]] = []
    for request in requests:
        stream = engine.submit(request)
        times.append(RequestTimes(len(request.prompt), clock() - start))
        running.append((stream, times[-1]))
    engine.flush()
    heard = clock()
    while running:
        worked = engine.step()
        now = clock()
        for stream, record in running:
            try:
                for event in stream.poll():
                    heard = now
                    if event.token_id is not None:
                        record.tokens.append(now - start)
                    record.finish_reason = event.finish_reason
            except DistaffError:
                record.finish_reason = FinishReason.ERROR
        running = [(stream, record) for stream, record in running if record.finish_reason is None]
        if now - heard > _STUCK_SECONDS:
            raise DistaffError(f"{len(running)} requests wait, and the engine gave no token for {_STUCK_SECONDS:.0f} s")
        if not worked and running:
            time.sleep(_IDLE_SECONDS)
    return Round(tuple(times), before, engine.metrics.snapshot(), time.process_time() - cpu)


def report(
    rounds: Sequence[Round],
    *,
    config: ModelConfig,
    limits: MachineLimits,
    weight_bytes: float,
    kv_bytes: int,
    goodput: Goodput | None = None,
) -> dict[str, Any]:
    """Sums the median round up, by elapsed time; as JSON knows it. Of an even number of rounds it is the faster one.

    Args:
        weight_bytes, kv_bytes: bytes of one weight, and of one number in the cache.
    """
    middle = statistics.median_low([each.elapsed for each in rounds])
    chosen = next(each for each in rounds if each.elapsed == middle)
    requests, elapsed = chosen.requests, chosen.elapsed
    ended = [times for times in requests if times.succeeded]
    counters = {name: chosen.after[name] - chosen.before[name] for name in _COUNTERS}
    phases = {
        phase: {name: value - chosen.before[phase][name] for name, value in chosen.after[phase].items()}
        for phase in ("prefill", "decode")
    }
    steps = sum(phase["steps"] for phase in phases.values())
    device = sum(phase["seconds"] for phase in phases.values())
    counted = {**counters, "max_batch": chosen.after["max_batch"]}
    value: dict[str, Any] = {
        "requests": len(requests),
        "prompt_tokens": sum(times.prompt_tokens for times in requests),
        "output_tokens": chosen.output_tokens,
        "elapsed_s": elapsed,
        "cpu_s": chosen.cpu_seconds,
        "output_tokens_per_s": rate_per_s(chosen.output_tokens, elapsed),
        "total_tokens_per_s": rate_per_s(
            chosen.output_tokens + sum(times.prompt_tokens for times in requests if times.tokens), elapsed
        ),
        "requests_per_s": rate_per_s(len(ended), elapsed),
        "rounds": [
            {"elapsed_s": each.elapsed, "output_tokens_per_s": rate_per_s(each.output_tokens, each.elapsed)}
            for each in rounds
        ],
        "failed": len(requests) - len(ended),
        **times_report(ended),
        **{
            name: _phase_report(phase, config, limits, weight_bytes=weight_bytes, kv_bytes=kv_bytes)
            for name, phase in phases.items()
        },
        "steps": steps,
        "host_gap_ms_per_step": max(0.0, elapsed - device) / steps * 1e3 if steps else 0.0,
        **shares(counted, phases["prefill"], phases["decode"]),
        **counters,
    }
    if goodput is not None:
        value["goodput"] = goodput.report(requests, elapsed)
    return value


def _phase_report(
    phase: Mapping[str, Any], config: ModelConfig, limits: MachineLimits, *, weight_bytes: float, kv_bytes: int
) -> dict[str, Any]:
    """Rates of one phase while the device was at work on it, and which limit of the machine is the nearer one."""
    work = work_of(
        config,
        Steps(phase["steps"], phase["tokens"], phase["drawn"], phase["attended"], phase["read"]),
        weight_bytes=weight_bytes,
        kv_bytes=kv_bytes,
    )
    seconds = phase["seconds"]
    return {
        "seconds": seconds,
        "steps": phase["steps"],
        "tokens": phase["tokens"],
        "prompt_tokens": phase["prompt_tokens"],
        "tokens_per_s": rate_per_s(phase["tokens"], seconds),
        "mfu": rate_per_s(work.flops, seconds) / limits.flops_per_s,
        "mbu": rate_per_s(work.bytes, seconds) / limits.bytes_per_s,
        "bound": limits.bound(work.flops, work.bytes) if phase["steps"] else None,
    }
