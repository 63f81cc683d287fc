"""Distaff's own metrics: all that it counts and no convention has a name for."""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

from ..bounds import LATENCY_BOUNDS, STEP_BOUNDS, TTFT_BOUNDS
from ..front import State
from ..metrics import Histogram
from .exported import Exported, Labels, Read, Value


def _build(front: Any) -> dict[str, str]:
    card = front.card
    names = {name: getattr(card, name) for name in ("family", "backend", "layout", "dtype")}
    return {"version": version("distaff"), "model": card.name, **names}


def _states(front: Any) -> Mapping[Labels, Value]:
    return {(state.value,): float(front.state is state) for state in State}


def _of(attribute: str) -> Read:
    def read(front: Any) -> Value:
        return getattr(front.metrics, attribute)

    return read


def _load(attribute: str) -> Read:
    def read(front: Any) -> Value:
        return getattr(front.load(), attribute)

    return read


def _share(used: Callable[[Any], float], of: Callable[[Any], float]) -> Read:
    return lambda front: used(front) / max(1, of(front))


def _phases(attribute: str) -> Read:
    def read(front: Any) -> Mapping[Labels, Value]:
        metrics = front.metrics
        return {(name,): getattr(getattr(metrics, name), attribute) for name in ("prefill", "decode")}

    return read


def _gauge(name: str, doc: str, read: Read, *labels: str) -> Exported:
    return Exported(f"distaff_{name}", "gauge", doc, read, labels)


def _counter(name: str, doc: str, read: Read, *labels: str) -> Exported:
    return Exported(f"distaff_{name}", "counter", doc, read, labels)


def _histogram(name: str, doc: str, attribute: str, bounds: tuple[float, ...]) -> Exported:
    def read(front: Any) -> Histogram:
        return getattr(front.metrics, attribute)

    return Exported(f"distaff_{name}", "histogram", doc, read, bounds=bounds)


OWN = (
    Exported("distaff_build_info", "gauge", "Always 1; the labels say what is served.", lambda _: 1.0, constant=_build),
    _gauge("state", "1 for the state that the server is in, 0 for the others.", _states, "state"),
    # Requests
    _counter("requests", "Requests that the engine took in.", _of("requests")),
    _counter(
        "request_outcomes",
        "Requests that ended, by the engine's reason: stop, length, abort or error.",
        lambda front: {(reason,): count for reason, count in front.metrics.outcomes.copy().items()},
        "reason",
    ),
    _counter(
        "calls_ended",
        "Answers that ended, by the reason that the caller saw: eos, stop_string, length, deadline, slow_reader, ...",
        lambda front: {(reason,): count for reason, count in front.counters.ended.items()},
        "reason",
    ),
    _counter(
        "calls_refused",
        "Calls that were not let in, by kind of error.",
        lambda front: {(kind,): count for kind, count in front.counters.refused.items()},
        "kind",
    ),
    _counter("stalls", "Streams that ended since nobody read them.", lambda front: front.counters.stalled),
    _counter("stream_tokens", "Tokens that reached streams.", lambda front: front.counters.tokens),
    _counter(
        "stream_joined_tokens",
        "Of these, tokens that waited for a slow reader together with others.",
        lambda front: front.counters.joined,
    ),
    _counter("loop_wakeups", "Times that the engine woke the event loop.", lambda front: front.counters.wakeups),
    # Levels
    _gauge("requests_waiting", "Calls that wait for a row of the batch.", _load("waiting")),
    _gauge("requests_running", "Calls that have one.", _load("running")),
    _gauge("streams", "Calls under way, waiting ones included.", _load("streams")),
    _gauge("tokens_in_flight", "Their prompts and longest answers, summed.", _load("tokens_in_flight")),
    _gauge("batch_rows", "Rows that fit a batch, of all replicas.", _load("max_batch")),
    _gauge(
        "batch_occupancy_ratio",
        "Rows in use of those that fit, from 0 to 1, now.",
        _share(lambda front: front.metrics.running, lambda front: front.load().max_batch),
    ),
    _gauge("pages", "Pages of the KV cache, all groups together.", _load("pages_total")),
    _gauge("pages_used", "Pages that sequences hold.", _load("pages_used")),
    _gauge("pages_cached", "Pages that the prefix cache alone keeps, for whoever needs them.", _of("pages_cached")),
    _gauge(
        "page_usage_ratio",
        "Pages that sequences hold of all, from 0 to 1.",
        _share(lambda front: front.load().pages_used, lambda front: front.load().pages_total),
    ),
    # Work
    _counter("prompt_tokens", "Tokens of prompts, cached ones included.", _of("prompt_tokens")),
    _counter("output_tokens", "Tokens generated.", _of("output_tokens")),
    _counter("prefix_queries", "Prompts looked up in the prefix cache.", _of("prefix_queries")),
    _counter("prefix_query_tokens", "Their tokens.", _of("prefix_query_tokens")),
    _counter("prefix_hit_tokens", "Those of them found computed.", _of("prefix_hit_tokens")),
    _counter("preemptions", "Sequences that lost their pages and were computed again.", _of("preemptions")),
    _counter("steps", "Times that the weights were gone through.", _phases("steps"), "phase"),
    _counter(
        "step_rows",
        "Sequences in each step, summed: rate(step_rows) / (rate(steps) * batch_rows) is the mean occupancy.",
        _phases("rows"),
        "phase",
    ),
    _counter("step_tokens", "Tokens computed.", _phases("tokens"), "phase"),
    _counter("step_bucket_tokens", "The same with the padding of their buckets.", _phases("bucket_tokens"), "phase"),
    _counter("device_seconds", "Seconds that the device was at work.", _phases("seconds"), "phase"),
    _counter("compiles", "Programs compiled.", _of("compiles")),
    _counter(
        "unexpected_compiles", "Programs compiled after warm-up, which should not happen.", _of("unexpected_compiles")
    ),
    # Times
    _histogram("queue_seconds", "From a request's arrival to its first slot.", "queue_time", TTFT_BOUNDS),
    _histogram("inter_token_seconds", "From a token of an answer to its next one.", "inter_token", LATENCY_BOUNDS),
    _histogram("step_device_seconds", "A call of the device, from dispatch to its end.", "step_device", STEP_BOUNDS),
    _histogram("step_host_seconds", "What the host did for a call of the device.", "step_host", STEP_BOUNDS),
    _histogram("step_wait_seconds", "What the host stood still for the device.", "step_wait", STEP_BOUNDS),
)
