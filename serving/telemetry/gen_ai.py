"""The server metrics of OpenTelemetry's semantic conventions for generative AI, under the names that Prometheus gives
them: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/ (status: development)."""

from collections.abc import Mapping
from typing import Any

from ..bounds import OTEL_REQUEST, OTEL_TOKEN, OTEL_TTFT
from ..metrics import Histogram
from .exported import Exported, Labels
from .operations import OPERATIONS, PROVIDER


def _constant(front: Any) -> dict[str, str]:
    names = {"gen_ai_provider_name": PROVIDER, "gen_ai_request_model": front.card.name}
    return {**names, "gen_ai_response_model": front.card.name}


def _durations(front: Any) -> Mapping[Labels, Histogram]:
    durations = front.metrics.durations.copy()
    return {(OPERATIONS[kind], error): histogram for (kind, error), histogram in durations.items()}


GEN_AI = (
    Exported(
        "gen_ai_server_request_duration_seconds",
        "histogram",
        "From a request's arrival to its last token. `error_type` is empty unless it failed.",
        _durations,
        labels=("gen_ai_operation_name", "error_type"),
        constant=_constant,
        bounds=OTEL_REQUEST,
    ),
    Exported(
        "gen_ai_server_time_to_first_token_seconds",
        "histogram",
        "From a request's arrival to its first token, the wait in the queue included.",
        lambda front: {(OPERATIONS["generate"],): front.metrics.ttft},
        labels=("gen_ai_operation_name",),
        constant=_constant,
        bounds=OTEL_TTFT,
    ),
    Exported(
        "gen_ai_server_time_per_output_token_seconds",
        "histogram",
        "Mean time per token behind the first: (last token - first token) / (tokens - 1) of each complete answer with "
        "two tokens or more.",
        lambda front: {(OPERATIONS["generate"],): front.metrics.token_time},
        labels=("gen_ai_operation_name",),
        constant=_constant,
        bounds=OTEL_TOKEN,
    ),
)
