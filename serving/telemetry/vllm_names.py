"""vLLM's names for what it and Distaff both count, with its definitions, so that dashboards, autoscalers and the
Kubernetes inference gateway's endpoint picker need no other configuration."""

import time
from typing import Any

from ..bounds import STEP_TOKEN_BOUNDS, TOKEN_BOUNDS, VLLM_REQUEST, VLLM_TOKEN, VLLM_TTFT
from ..metrics import Histogram
from .exported import Exported, Read

_STARTED = time.time()


def _constant(front: Any) -> dict[str, str]:
    return {"model_name": front.card.name, "engine": "0"}


def _cache_config(front: Any) -> dict[str, str]:
    size, pages = front.metrics.page_size, front.load().pages_total
    return {**_constant(front), "block_size": str(size), "num_gpu_blocks": str(pages)}


def _no_adapters(front: Any) -> dict[str, str]:
    return {**_constant(front), "max_lora": "0", "running_lora_adapters": "", "waiting_lora_adapters": ""}


def _gauge(name: str, doc: str, read: Read) -> Exported:
    return Exported(f"vllm:{name}", "gauge", doc, read, constant=_constant)


def _counter(name: str, doc: str, read: Read) -> Exported:
    return Exported(f"vllm:{name}", "counter", doc, read, constant=_constant)


def _histogram(name: str, doc: str, attribute: str, bounds: tuple[float, ...]) -> Exported:
    def read(front: Any) -> Histogram:
        return getattr(front.metrics, attribute)

    return Exported(f"vllm:{name}", "histogram", doc, read, constant=_constant, bounds=bounds)


VLLM = (
    _gauge("num_requests_running", "Calls that have a row of the batch.", lambda front: front.load().running),
    _gauge("num_requests_waiting", "Calls that wait for one.", lambda front: front.load().waiting),
    _gauge(
        "kv_cache_usage_perc",
        "Share of the KV cache that sequences hold, from 0 to 1. Pages that only the prefix cache keeps count as free.",
        lambda front: front.load().pages_used / max(1, front.load().pages_total),
    ),
    Exported(
        "vllm:cache_config_info",
        "gauge",
        "Always 1; the labels tell the positions of a page and the number of pages.",
        lambda front: 1.0,
        constant=_cache_config,
    ),
    Exported(
        "vllm:lora_requests_info",
        "gauge",
        "Time of the last change of adapters, of which there are none; the labels say so.",
        lambda front: _STARTED,
        constant=_no_adapters,
    ),
    _counter("prefix_cache_queries", "Prompt tokens looked up.", lambda front: front.metrics.prefix_query_tokens),
    _counter("prefix_cache_hits", "Prompt tokens found computed.", lambda front: front.metrics.prefix_hit_tokens),
    _counter("num_preemptions", "Sequences that lost their pages.", lambda front: front.metrics.preemptions),
    _counter("prompt_tokens", "Tokens of prompts, cached ones included.", lambda front: front.metrics.prompt_tokens),
    _counter("generation_tokens", "Tokens generated.", lambda front: front.metrics.output_tokens),
    Exported(
        "vllm:request_success",
        "counter",
        "Requests that ended, by finish reason: stop, length, abort or error.",
        lambda front: {(reason,): count for reason, count in front.metrics.outcomes.copy().items()},
        labels=("finished_reason",),
        constant=_constant,
    ),
    _histogram("time_to_first_token_seconds", "From arrival to the first token.", "ttft", VLLM_TTFT),
    _histogram("inter_token_latency_seconds", "From a token to the next one.", "inter_token", VLLM_TOKEN),
    _histogram("time_per_output_token_seconds", "The same, under its older name.", "inter_token", VLLM_TOKEN),
    _histogram(
        "request_time_per_output_token_seconds",
        "Mean time per token behind the first, of each complete answer.",
        "token_time",
        VLLM_TOKEN,
    ),
    _histogram("e2e_request_latency_seconds", "From arrival to the last token.", "request_time", VLLM_REQUEST),
    _histogram("request_queue_time_seconds", "From arrival to the first slot.", "queue_time", VLLM_REQUEST),
    _histogram("request_prefill_time_seconds", "From the first slot to the first token.", "prefill_time", VLLM_REQUEST),
    _histogram("request_decode_time_seconds", "From the first token to the last.", "decode_time", VLLM_REQUEST),
    _histogram("request_inference_time_seconds", "From the first slot to the last token.", "run_time", VLLM_REQUEST),
    _histogram("request_prompt_tokens", "Tokens of a prompt.", "prompt_sizes", TOKEN_BOUNDS),
    _histogram("request_generation_tokens", "Tokens generated for a request.", "answer_sizes", TOKEN_BOUNDS),
    _histogram("iteration_tokens_total", "Tokens computed in a step.", "step_tokens", STEP_TOKEN_BOUNDS),
)
