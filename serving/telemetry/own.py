"""Distaff's own metrics: all that it counts and no convention has a name for."""

from collections.abc import Callable, Mapping
from importlib.metadata import version

from ..bounds import LATENCY_BOUNDS, STEP_BOUNDS, TTFT_BOUNDS
from ..front import Front, State
from ..metrics import Phase
from .exported import Family, Labels, Read, Value


def _build(front: Front) -> dict[str, str]:
    card = front.card
    names = {name: getattr(card, name) for name in ("family", "backend", "layout", "dtype")}
    return {"version": version("distaff"), "model": card.name, **names}


def _states(front: Front) -> Mapping[Labels, Value]:
    return {(state.value,): float(front.state is state) for state in State}


def _phases(value: Callable[[Phase], float]) -> Read:
    return lambda front: {("prefill",): value(front.metrics.prefill), ("decode",): value(front.metrics.decode)}


_FAMILY = Family("distaff_")

OWN = (
    Family("distaff_", _build).gauge("build_info", "Always 1; the labels say what is served.", lambda front: 1.0),
    _FAMILY.gauge("state", "1 for the state that the server is in, 0 for the others.", _states, "state"),
    # Requests
    _FAMILY.counter("requests", "Requests that the engine took in.", lambda front: front.metrics.requests),
    _FAMILY.counter(
        "request_outcomes",
        "Requests that ended, by the engine's reason: stop, length, abort or error.",
        lambda front: {(reason,): count for reason, count in front.metrics.outcomes.copy().items()},
        "reason",
    ),
    _FAMILY.counter(
        "calls_ended",
        "Answers that ended, by the reason that the caller saw: eos, stop_string, length, deadline, slow_reader, ...",
        lambda front: {(reason,): count for reason, count in front.counters.ended.items()},
        "reason",
    ),
    _FAMILY.counter(
        "calls_refused",
        "Calls that were not let in, by kind of error.",
        lambda front: {(kind,): count for kind, count in front.counters.refused.items()},
        "kind",
    ),
    _FAMILY.counter("stalls", "Streams that ended since nobody read them.", lambda front: front.counters.stalled),
    _FAMILY.counter("stream_tokens", "Tokens that reached streams.", lambda front: front.counters.tokens),
    _FAMILY.counter(
        "stream_joined_tokens",
        "Of these, tokens that waited for a slow reader together with others.",
        lambda front: front.counters.joined,
    ),
    _FAMILY.counter("loop_wakeups", "Times that the engine woke the event loop.", lambda front: front.counters.wakeups),
    # Levels
    _FAMILY.gauge("requests_waiting", "Calls that wait for a row of the batch.", lambda front: front.load().waiting),
    _FAMILY.gauge("requests_running", "Calls that have one.", lambda front: front.load().running),
    _FAMILY.gauge("streams", "Calls under way, waiting ones included.", lambda front: front.load().streams),
    _FAMILY.gauge(
        "tokens_in_flight", "Their prompts and longest answers, summed.", lambda front: front.load().tokens_in_flight
    ),
    _FAMILY.gauge("batch_rows", "Rows that fit a batch, of all replicas.", lambda front: front.load().max_batch),
    _FAMILY.gauge(
        "batch_occupancy_ratio",
        "Rows in use of those that fit, from 0 to 1, now.",
        lambda front: front.metrics.running / max(1, front.load().max_batch),
    ),
    _FAMILY.gauge("pages", "Pages of the KV cache, all groups together.", lambda front: front.load().pages_total),
    _FAMILY.gauge("pages_used", "Pages that sequences hold.", lambda front: front.load().pages_used),
    _FAMILY.gauge(
        "pages_cached",
        "Pages that the prefix cache alone keeps, for whoever needs them.",
        lambda front: front.metrics.pages_cached,
    ),
    _FAMILY.gauge(
        "page_usage_ratio",
        "Pages that sequences hold of all, from 0 to 1.",
        lambda front: front.load().page_usage,
    ),
    # Work
    _FAMILY.counter(
        "prompt_tokens", "Tokens of prompts, cached ones included.", lambda front: front.metrics.prompt_tokens
    ),
    _FAMILY.counter("output_tokens", "Tokens generated.", lambda front: front.metrics.output_tokens),
    _FAMILY.counter(
        "prefix_queries", "Prompts looked up in the prefix cache.", lambda front: front.metrics.prefix_queries
    ),
    _FAMILY.counter("prefix_query_tokens", "Their tokens.", lambda front: front.metrics.prefix_query_tokens),
    _FAMILY.counter(
        "prefix_hit_tokens", "Those of them found computed.", lambda front: front.metrics.prefix_hit_tokens
    ),
    _FAMILY.counter(
        "preemptions",
        "Sequences that lost their pages and were computed again.",
        lambda front: front.metrics.preemptions,
    ),
    _FAMILY.counter("steps", "Times that the weights were gone through.", _phases(lambda phase: phase.steps), "phase"),
    _FAMILY.counter(
        "step_rows",
        "Sequences in each step, summed: rate(step_rows) / (rate(steps) * step_max_rows) is the mean occupancy.",
        _phases(lambda phase: phase.rows),
        "phase",
    ),
    _FAMILY.gauge("step_max_rows", "Rows that fit a step, of one replica.", lambda front: front.metrics.max_batch),
    _FAMILY.counter("step_tokens", "Tokens computed.", _phases(lambda phase: phase.tokens), "phase"),
    _FAMILY.counter(
        "step_bucket_tokens",
        "The same with the padding of their buckets.",
        _phases(lambda phase: phase.bucket_tokens),
        "phase",
    ),
    _FAMILY.counter(
        "device_seconds", "Seconds that the device was at work.", _phases(lambda phase: phase.seconds), "phase"
    ),
    _FAMILY.counter("compiles", "Programs compiled.", lambda front: front.metrics.compiles),
    _FAMILY.counter(
        "unexpected_compiles",
        "Programs compiled after warm-up, which should not happen.",
        lambda front: front.metrics.unexpected_compiles,
    ),
    # Times
    _FAMILY.histogram(
        "queue_seconds",
        "From a request's arrival to its first slot.",
        TTFT_BOUNDS,
        lambda front: front.metrics.queue_time,
    ),
    _FAMILY.histogram(
        "inter_token_seconds",
        "From a token of an answer to its next one.",
        LATENCY_BOUNDS,
        lambda front: front.metrics.inter_token,
    ),
    _FAMILY.histogram(
        "step_device_seconds",
        "A call of the device, from dispatch to its end.",
        STEP_BOUNDS,
        lambda front: front.metrics.step_device,
    ),
    _FAMILY.histogram(
        "step_host_seconds",
        "What the host did for a call of the device.",
        STEP_BOUNDS,
        lambda front: front.metrics.step_host,
    ),
    _FAMILY.histogram(
        "step_wait_seconds",
        "What the host stood still for the device.",
        STEP_BOUNDS,
        lambda front: front.metrics.step_wait,
    ),
)
