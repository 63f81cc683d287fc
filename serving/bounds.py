"""At which values histograms count exactly, so that what is exported is exact wherever somebody compares servers.

OpenTelemetry's semantic conventions for generative AI give the bounds of three of them; vLLM's dashboards read longer
lists under its own names. A histogram is made with the union of the lists that it is exported with.
"""

OTEL_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""gen_ai.server.time_to_first_token, seconds."""
OTEL_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
"""gen_ai.server.time_per_output_token, seconds."""
OTEL_REQUEST = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""gen_ai.server.request.duration, seconds."""

VLLM_TTFT = (*OTEL_TTFT, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)
VLLM_TOKEN = (*OTEL_TOKEN, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
VLLM_REQUEST = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
"""Of a request's queue, prefill, decode, inference and end-to-end time."""

TTFT_BOUNDS = VLLM_TTFT
LATENCY_BOUNDS = (0.001, 0.0025, 0.005, *VLLM_TOKEN)
"""Of gaps between tokens: fast models stay below the first bound of the others."""
REQUEST_BOUNDS = tuple(sorted({*OTEL_REQUEST, *VLLM_REQUEST}))
QUEUE_BOUNDS = tuple(sorted({*TTFT_BOUNDS, *VLLM_REQUEST}))
TOKEN_BOUNDS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))
"""Lengths of prompts and answers, in tokens."""
STEP_TOKEN_BOUNDS = (1.0, *(float(2**power) for power in range(3, 15)))
"""Tokens of a step."""
STEP_BOUNDS = tuple(digit * 10.0**power for power in range(-5, 1) for digit in (1, 2, 5))
"""Parts of a step, seconds."""
