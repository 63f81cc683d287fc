"""Spans of requests, by OpenTelemetry's conventions for generative AI.

Nothing of OpenTelemetry is imported, and nothing is done for a request, unless the environment asks for spans as the
OpenTelemetry specification has it: OTEL_TRACES_EXPORTER, or the address of a collector. The SDK reads the other
OTEL_* variables itself. A span is made when its request has ended, from the times that were taken anyway.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points, version
from typing import Any

from ...backends.errors import UsageError
from ..front import Call, Front, Stream
from .operations import PROVIDER, operation_of

_log = logging.getLogger(__name__)
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_GROUP = "opentelemetry_traces_exporter"
_PARAMETERS = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "n": "choice.count",
}


def exporters_wanted(environ: Mapping[str, str]) -> list[str]:
    """Names of the exporters that the environment asks for; none for no spans."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    default = "otlp" if any(environ.get(name) for name in _ENDPOINTS) else "none"
    names = [name.strip() for name in (environ.get("OTEL_TRACES_EXPORTER") or default).split(",")]
    return [name for name in names if name and name != "none"]


def tracing_from_environment(environ: Mapping[str, str] = os.environ) -> "Tracing | None":
    """What the OTEL_* variables ask for; None where they ask for nothing.

    Raises:
        UsageError: it needs something that is not installed.
    """
    names = exporters_wanted(environ)
    if not names:
        return None
    try:
        provide, export = import_module("opentelemetry.sdk.trace"), import_module("opentelemetry.sdk.trace.export")
    except ImportError as error:
        raise UsageError(
            "OTEL_TRACES_EXPORTER or OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry's SDK is not installed "
            f"({error}): install distaff[telemetry], or unset it"
        ) from error
    provider = provide.TracerProvider(shutdown_on_exit=False)
    for name in names:
        provider.add_span_processor(export.BatchSpanProcessor(_exporter(name, environ)))
    return Tracing(provider)


class Tracing:
    """Makes spans of the calls of fronts.

    Args:
        provider: an OpenTelemetry TracerProvider; closed with this.
        wall: nanoseconds since 1970.
    """

    def __init__(self, provider: Any, wall: Callable[[], int] = time.time_ns) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._context = TraceContextTextMapPropagator()
        self._provider = provider
        self._wall = wall
        self._tracer = provider.get_tracer("distaff", version("distaff"))

    def watch(self, front: Front) -> None:
        """Spans of everything that ends there from now on."""

        def ended(call: Call, stream: Stream) -> None:
            try:
                self._ended(front, call, stream)
            except Exception:  # whatever a collector's library throws: no request may suffer from it
                _log.exception("no span was made of request %s", stream.id)

        front.on_ended(ended)

    def close(self) -> None:
        """Sends what was not sent."""
        self._provider.shutdown()

    def _ended(self, front: Front, call: Call, stream: Stream) -> None:
        trace = self._trace
        end = self._wall()
        start = end - round(front.seconds_since(stream.opened) * 1e9)
        carrier = {} if call.traceparent is None else {"traceparent": call.traceparent}
        operation = operation_of(call)
        span = self._tracer.start_span(
            f"{operation} {front.card.name}",
            context=self._context.extract(carrier),
            kind=trace.SpanKind.SERVER,
            attributes=_asked(call, stream, front.card.name, operation),
            start_time=start,
        )
        if span.is_recording():
            span.set_attributes(_done(stream))
            if stream.error is not None:
                name = type(stream.error).__name__
                span.set_attribute("error.type", name)
                span.set_status(trace.StatusCode.ERROR, name)
            self._parts(trace.set_span_in_context(span), stream, start, end)
        span.end(end)

    def _parts(self, context: Any, stream: Stream, start: int, end: int) -> None:
        """The queue, prefill (to the first token) and decode (to the last one); as far as it came."""
        timings = stream.timings
        first = round(timings.ttft * 1e9)
        parts = {"queue": (0, round(timings.queue * 1e9)), "prefill": (round(timings.queue * 1e9), first)}
        parts["decode"] = (first, first + round(timings.decode * 1e9))
        if stream.admitted is None:
            parts = {"queue": (0, end - start)}
        for name, (begin, stop) in parts.items():
            if stop > begin:
                part = self._tracer.start_span(name, context=context, start_time=start + begin)
                part.end(start + stop)


def _asked(call: Call, stream: Stream, model: str, operation: str) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": call.model or model,
        "gen_ai.response.model": model,
        "gen_ai.response.id": stream.id,
    }
    params = call.params if stream.admitted is None else stream.admitted.params
    if operation in ("chat", "text_completion"):
        for name, told in _PARAMETERS.items():
            value = getattr(params, name)
            if value is not None:
                attributes[f"gen_ai.request.{told}"] = value
        if params.seed is not None:
            attributes["gen_ai.request.seed"] = params.seed if params.seed < 2**63 else params.seed - 2**64
    if call.tenant:
        attributes["distaff.tenant"] = call.tenant
    return attributes


def _done(stream: Stream) -> dict[str, Any]:
    usage, ends = stream.usage, stream.finished
    return {
        "gen_ai.response.finish_reasons": [ends[index].reason.value for index in sorted(ends)] or [stream.outcome],
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        "distaff.time_to_first_token": stream.timings.ttft,
        "distaff.time_in_queue": stream.timings.queue,
    }


def _exporter(name: str, environ: Mapping[str, str]) -> Any:
    """An exporter by its registered name; `otlp` by the protocol that the variables name."""
    if name == "otlp":
        told = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "grpc"
        name = "otlp_proto_grpc" if told == "grpc" else "otlp_proto_http"
    found = tuple(entry_points(group=_GROUP, name=name))
    known = sorted({entry.name for entry in entry_points(group=_GROUP)})
    if not found:
        raise UsageError(
            f"the OpenTelemetry exporter {name!r} is not installed, found {', '.join(known) or 'none'}: install "
            "distaff[telemetry], or set OTEL_TRACES_EXPORTER and OTEL_EXPORTER_OTLP_PROTOCOL to one that is"
        )
    return found[0].load()()
