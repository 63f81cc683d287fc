"""The exposition: parsed by Prometheus's own parsers, and equal to what a known workload did."""

import asyncio
import re
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from distaff.serving.bounds import OTEL_REQUEST, OTEL_TOKEN, OTEL_TTFT, VLLM_REQUEST, VLLM_TTFT
from distaff.serving.front import Call, Chat, FrontLimits, OverloadedError
from distaff.serving.telemetry.exports import EXPORTS
from distaff.serving.telemetry.prometheus import Exposition
from distaff.serving.types import Kind, SamplingParams

from ..served import PAGE, Served, serving

MODEL = {"model_name": "fake", "engine": "0"}


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


class Scrape:
    """The samples of an exposition, by name and labels."""

    def __init__(self, text: str, parse: Any = parse_plain) -> None:
        self.families = {family.name: family for family in parse(text)}
        self.samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        return self.samples[name, tuple(sorted(labels.items()))]

    def buckets(self, name: str, **labels: str) -> dict[str, float]:
        found = {}
        for (sample, pairs), value in self.samples.items():
            given = dict(pairs)
            bound = given.pop("le", None)
            if sample == f"{name}_bucket" and given == labels and bound is not None:
                found[bound] = value
        return found


async def workload(served: Served) -> None:
    """Answers to two texts (8 tokens each) and in a conversation (2 tokens), a score, an embedding, a cancelled call,
    a refused one, and one that fails."""
    front, chat = served.front, Chat(({"role": "user", "content": "z"},), {"add_generation_prompt": True})
    for prompt, tokens, n in (("hello there, you", 8, 1), ("hello there, me!", 4, 2), (chat, 2, 1)):
        await (await front.open(Call(prompt, SamplingParams(max_tokens=tokens, n=n)))).result()
    await (await front.open(Call("score", kind=Kind.SCORE))).result()
    await (await front.open(Call("embed", kind=Kind.EMBED))).result()
    served.programs.gate.clear()
    waiting = await front.open(Call("long", SamplingParams(max_tokens=50)))
    with pytest.raises(OverloadedError):
        await front.open(Call("more"))
    await waiting.close()
    served.programs.gate.set()
    await served.settle()
    served.programs.failure = RuntimeError("broken")
    with pytest.raises(Exception, match="device"):
        await (await front.open(Call("fails"))).result()
    served.programs.failure = None
    await served.settle()


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_what_is_exposed_is_what_was_done(accept: str) -> None:
    async def check() -> None:
        async with serving(limits=FrontLimits(max_streams=1)) as served:
            await workload(served)
            text, content_type = Exposition(served.front).render(accept)
            assert content_type.startswith("application/openmetrics-text" if accept else "text/plain")
            seen = Scrape(text.decode(), parse_openmetrics if accept else parse_plain)

            assert seen("distaff_requests_total") == 7
            tokens = seen("distaff_output_tokens_total")
            assert 18 <= tokens <= 20 and tokens == seen("vllm:generation_tokens_total", **MODEL)  # one was cancelled
            spelled = ("hello there, you", "hello there, me!", "<z>:", "score", "embed", "long", "fails")
            prompts = sum(map(len, spelled))  # the template puts three tokens round a message of one
            assert seen("distaff_prompt_tokens_total") == seen("vllm:prompt_tokens_total", **MODEL) == prompts
            for reason, count in (("length", 3), ("stop", 2), ("abort", 1), ("error", 1)):
                assert seen("distaff_request_outcomes_total", reason=reason) == count
                assert seen("vllm:request_success_total", finished_reason=reason, **MODEL) == count
            assert seen("distaff_calls_refused_total", kind="overloaded") == 1
            assert seen("distaff_calls_ended_total", reason="cancelled") == 1
            assert seen("distaff_state", state="ready") == 1 and seen("distaff_state", state="failed") == 0

            # Whole pages of the first prompt and its answer were found again.
            hits = seen("vllm:prefix_cache_hits_total", **MODEL)
            assert hits == seen("distaff_prefix_hit_tokens_total") == served.front.metrics.prefix_hit_tokens >= 12
            config = {"block_size": str(PAGE), "num_gpu_blocks": "256"}
            assert seen("vllm:cache_config_info", **config, **MODEL) == 1
            assert seen("distaff_pages") == 256 and seen("distaff_pages_used") == 0
            assert seen("vllm:kv_cache_usage_perc", **MODEL) == 0
            assert seen("vllm:num_requests_running", **MODEL) == seen("vllm:num_requests_waiting", **MODEL) == 0

            # One first token for each answer, the second answer of n=2 too; the cancelled call may have had its own.
            ttft = seen.buckets("vllm:time_to_first_token_seconds", **MODEL)
            assert [float(bound) for bound in ttft][:-1] == list(VLLM_TTFT)
            assert ttft["+Inf"] in (4, 5) and list(ttft.values()) == sorted(ttft.values())
            own = {"gen_ai_provider_name": "distaff", "gen_ai_request_model": "fake", "gen_ai_response_model": "fake"}
            for name, bounds, operation, count in (
                ("time_to_first_token", OTEL_TTFT, "text_completion", ttft["+Inf"] - 1),
                ("time_to_first_token", OTEL_TTFT, "chat", 1),
                ("time_per_output_token", OTEL_TOKEN, "text_completion", 3),
                ("time_per_output_token", OTEL_TOKEN, "chat", 1),
            ):
                labels = {**own, "gen_ai_operation_name": operation}
                buckets = seen.buckets(f"gen_ai_server_{name}_seconds", **labels)
                assert [float(bound) for bound in buckets][:-1] == list(bounds)
                assert buckets["+Inf"] == seen(f"gen_ai_server_{name}_seconds_count", **labels) == count
            durations = "gen_ai_server_request_duration_seconds"
            for operation, error, count in (
                ("text_completion", "", 3),
                ("chat", "", 1),
                ("text_completion", "DeviceError", 1),
                ("score", "", 1),
                ("embeddings", "", 1),
            ):
                labels = {**own, "gen_ai_operation_name": operation, "error_type": error}
                buckets = seen.buckets(durations, **labels)
                assert [float(bound) for bound in buckets][:-1] == list(OTEL_REQUEST)
                assert buckets["+Inf"] == seen(f"{durations}_count", **labels) == count
            latency = seen.buckets("vllm:e2e_request_latency_seconds", **MODEL)
            assert [float(bound) for bound in latency][:-1] == list(VLLM_REQUEST) and latency["+Inf"] == 7
            sizes = seen.buckets("vllm:request_prompt_tokens", **MODEL)
            assert (sizes["1.0"], sizes["5.0"], sizes["20.0"]) == (0, 5, 7)
            steps = served.front.metrics.prefill.steps + served.front.metrics.decode.steps
            assert seen("vllm:iteration_tokens_total_count", **MODEL) == steps
            if "process_open_fds" in seen.families:
                assert seen("process_open_fds") > 0

    run(check())


def test_levels_are_those_of_now() -> None:
    async def check() -> None:
        async with serving(slots=2) as served:
            served.programs.step_seconds = 0.005
            streams = [await served.front.open(Call(f"prompt {i}", SamplingParams(max_tokens=100))) for i in range(3)]
            while served.front.load().running < 2:
                await asyncio.sleep(0.002)
            await asyncio.sleep(0.03)
            seen = Scrape(Exposition(served.front, process=False).render()[0].decode())
            assert (seen("distaff_requests_running"), seen("distaff_requests_waiting")) == (2, 1)
            assert (seen("vllm:num_requests_running", **MODEL), seen("vllm:num_requests_waiting", **MODEL)) == (2, 1)
            assert seen("distaff_batch_occupancy_ratio") == 1 and seen("distaff_batch_rows") == 2
            assert seen("distaff_streams") == 3 and seen("distaff_tokens_in_flight") == 3 * 108
            assert (
                0
                < seen("vllm:kv_cache_usage_perc", **MODEL)
                == pytest.approx(seen("distaff_pages_used") / 256, abs=0.02)
            )
            for stream in streams:
                await stream.close()
            await served.settle()
            await asyncio.sleep(0.05)
            seen = Scrape(Exposition(served.front, process=False).render()[0].decode())
            # What only the prefix cache remembers is free for whoever comes: a gateway must not see a full cache.
            assert seen("distaff_pages_used") == 0 and seen("distaff_pages_cached") > 0
            assert seen("distaff_batch_occupancy_ratio") == 0

    run(check())


def test_each_metric_is_exposed_once_under_its_kind() -> None:
    async def check() -> None:
        async with serving() as served:
            text = Exposition(served.front, process=False).render()[0].decode()
            seen = Scrape(text)
            names = [exported.name for exported in EXPORTS]
            assert len(set(names)) == len(names)
            assert seen.families.keys() == set(names)
            for exported in EXPORTS:
                assert seen.families[exported.name].type == exported.kind
                assert seen.families[exported.name].documentation == exported.doc

    run(check())


def test_the_document_asks_for_metrics_that_there_are() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "serving" / "metrics.md").read_text()
    (questions,) = re.findall(r"^```text\n(histogram_quantile.*?)^```", text, re.DOTALL | re.MULTILINE)
    asked = set(re.findall(r"\b(?:distaff_|gen_ai_|vllm:)\w+", questions))
    assert len(asked) > 5
    assert {name.removesuffix("_bucket") for name in asked} <= {exported.exposed_name for exported in EXPORTS}


def test_two_servers_in_a_process_do_not_mix() -> None:
    async def check() -> None:
        async with serving() as one, serving() as other:
            await (await one.front.open(Call("a", SamplingParams(max_tokens=1)))).result()
            counts = []
            for served in (one, other):
                counts.append(Scrape(Exposition(served.front).render()[0].decode())("distaff_requests_total"))
            assert counts == [1, 0]

    run(check())
