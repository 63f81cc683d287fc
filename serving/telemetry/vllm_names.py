"""vLLM's names for what it and Distaff both count, with its definitions, so that dashboards, autoscalers and the
Kubernetes inference gateway's endpoint picker need no other configuration."""

import time

from ..bounds import STEP_TOKEN_BOUNDS, TOKEN_BOUNDS, VLLM_REQUEST, VLLM_TOKEN, VLLM_TTFT
from ..front import Front
from .exported import Family

_STARTED = time.time()


def _constant(front: Front) -> dict[str, str]:
    return {"model_name": front.card.name, "engine": "0"}


def _cache_config(front: Front) -> dict[str, str]:
    size, pages = front.metrics.page_size, front.load().pages_total
    return {**_constant(front), "block_size": str(size), "num_gpu_blocks": str(pages)}


def _no_adapters(front: Front) -> dict[str, str]:
    return {**_constant(front), "max_lora": "0", "running_lora_adapters": "", "waiting_lora_adapters": ""}


_FAMILY = Family("vllm:", _constant)

VLLM = (
    _FAMILY.gauge("num_requests_running", "Calls that have a row of the batch.", lambda front: front.load().running),
    _FAMILY.gauge("num_requests_waiting", "Calls that wait for one.", lambda front: front.load().waiting),
    _FAMILY.gauge(
        "kv_cache_usage_perc",
        "Share of the KV cache that sequences hold, from 0 to 1. Pages that only the prefix cache keeps count as free.",
        lambda front: front.load().page_usage,
    ),
    Family("vllm:", _cache_config).gauge(
        "cache_config_info",
        "Always 1; the labels tell the positions of a page and the number of pages.",
        lambda front: 1.0,
    ),
    Family("vllm:", _no_adapters).gauge(
        "lora_requests_info",
        "Time of the last change of adapters, of which there are none; the labels say so.",
        lambda front: _STARTED,
    ),
    _FAMILY.counter(
        "prefix_cache_queries", "Prompt tokens looked up.", lambda front: front.metrics.prefix_query_tokens
    ),
    _FAMILY.counter(
        "prefix_cache_hits", "Prompt tokens found computed.", lambda front: front.metrics.prefix_hit_tokens
    ),
    _FAMILY.counter("num_preemptions", "Sequences that lost their pages.", lambda front: front.metrics.preemptions),
    _FAMILY.counter(
        "prompt_tokens", "Tokens of prompts, cached ones included.", lambda front: front.metrics.prompt_tokens
    ),
    _FAMILY.counter("generation_tokens", "Tokens generated.", lambda front: front.metrics.output_tokens),
    _FAMILY.counter(
        "request_success",
        "Requests that ended, by finish reason: stop, length, abort or error.",
        lambda front: {(reason,): count for reason, count in front.metrics.outcomes.copy().items()},
        "finished_reason",
    ),
    _FAMILY.histogram(
        "time_to_first_token_seconds", "From arrival to the first token.", VLLM_TTFT, lambda front: front.metrics.ttft
    ),
    _FAMILY.histogram(
        "inter_token_latency_seconds",
        "From a token to the next one.",
        VLLM_TOKEN,
        lambda front: front.metrics.inter_token,
    ),
    _FAMILY.histogram(
        "time_per_output_token_seconds",
        "The same, under its older name.",
        VLLM_TOKEN,
        lambda front: front.metrics.inter_token,
    ),
    _FAMILY.histogram(
        "request_time_per_output_token_seconds",
        "Mean time per token behind the first, of each complete answer.",
        VLLM_TOKEN,
        lambda front: front.metrics.token_time,
    ),
    _FAMILY.histogram(
        "e2e_request_latency_seconds",
        "From arrival to the last token.",
        VLLM_REQUEST,
        lambda front: front.metrics.request_time,
    ),
    _FAMILY.histogram(
        "request_queue_time_seconds",
        "From arrival to the first slot.",
        VLLM_REQUEST,
        lambda front: front.metrics.queue_time,
    ),
    _FAMILY.histogram(
        "request_prefill_time_seconds",
        "From the first slot to the first token.",
        VLLM_REQUEST,
        lambda front: front.metrics.prefill_time,
    ),
    _FAMILY.histogram(
        "request_decode_time_seconds",
        "From the first token to the last.",
        VLLM_REQUEST,
        lambda front: front.metrics.decode_time,
    ),
    _FAMILY.histogram(
        "request_inference_time_seconds",
        "From the first slot to the last token.",
        VLLM_REQUEST,
        lambda front: front.metrics.run_time,
    ),
    _FAMILY.histogram(
        "request_prompt_tokens", "Tokens of a prompt.", TOKEN_BOUNDS, lambda front: front.metrics.prompt_sizes
    ),
    _FAMILY.histogram(
        "request_generation_tokens",
        "Tokens generated for a request.",
        TOKEN_BOUNDS,
        lambda front: front.metrics.answer_sizes,
    ),
    _FAMILY.histogram(
        "iteration_tokens_total",
        "Tokens computed in a step.",
        STEP_TOKEN_BOUNDS,
        lambda front: front.metrics.step_tokens,
    ),
)
