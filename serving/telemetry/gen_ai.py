"""The server metrics of OpenTelemetry's semantic conventions for generative AI, under the names that Prometheus gives
them: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/ (status: development)."""

from collections.abc import Mapping

from ..bounds import OTEL_REQUEST, OTEL_TOKEN, OTEL_TTFT
from ..front import Front
from ..metrics import Histogram
from .exported import Family, Labels
from .operations import OPERATIONS, PROVIDER


def _constant(front: Front) -> dict[str, str]:
    names = {"gen_ai_provider_name": PROVIDER, "gen_ai_request_model": front.card.name}
    return {**names, "gen_ai_response_model": front.card.name}


def _durations(front: Front) -> Mapping[Labels, Histogram]:
    durations = front.metrics.durations.copy()
    return {(OPERATIONS[kind], error): histogram for (kind, error), histogram in durations.items()}


def _by_operation(histograms: Mapping[str, Histogram]) -> Mapping[Labels, Histogram]:
    return {(OPERATIONS[kind],): histogram for kind, histogram in dict(histograms).items()}


_FAMILY = Family("gen_ai_server_", _constant)

GEN_AI = (
    _FAMILY.histogram(
        "request_duration_seconds",
        "From a request's arrival to its last token. `error_type` is empty unless it failed.",
        OTEL_REQUEST,
        _durations,
        "gen_ai_operation_name",
        "error_type",
    ),
    _FAMILY.histogram(
        "time_to_first_token_seconds",
        "From a request's arrival to its first token, the wait in the queue included.",
        OTEL_TTFT,
        lambda front: _by_operation(front.metrics.ttft_of),
        "gen_ai_operation_name",
    ),
    _FAMILY.histogram(
        "time_per_output_token_seconds",
        "Mean time per token behind the first: (last token - first token) / (tokens - 1) of each complete answer with "
        "two tokens or more.",
        OTEL_TOKEN,
        lambda front: _by_operation(front.metrics.token_time_of),
        "gen_ai_operation_name",
    ),
)
