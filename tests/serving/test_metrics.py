"""The engine's numbers: quantiles as accurate as stated, counts that add up, readers that never disturb the writer."""

import json
import math
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distaff.serving.bounds import (
    LATENCY_BOUNDS,
    OTEL_REQUEST,
    OTEL_TOKEN,
    OTEL_TTFT,
    QUEUE_BOUNDS,
    REQUEST_BOUNDS,
    TTFT_BOUNDS,
    VLLM_REQUEST,
    VLLM_TOKEN,
    VLLM_TTFT,
)
from distaff.serving.metrics import ACCURACY, QUANTILES, Histogram, Metrics
from distaff.serving.plan import Bucket, Plan, PlannedRow
from distaff.serving.sequence import Sequence
from distaff.serving.types import Request


@given(
    st.lists(st.floats(1.001e-6, 0.999e6), min_size=1, max_size=300),
    st.sampled_from([*QUANTILES, 0.001, 0.25, 1.0]),
)
def test_quantiles_are_as_accurate_as_stated(values: list[float], share: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    want = float(np.quantile(values, share, method="inverted_cdf"))
    assert histogram.quantile(share) == pytest.approx(want, rel=ACCURACY * (1 + 1e-9))


@given(st.lists(st.sampled_from([0.0, 0.5, 0.01, 0.010001, 0.3, 2.5, 2.6, 1e-9, 1e9]), max_size=60))
def test_counts_at_the_given_bounds_are_exact(values: list[float]) -> None:
    histogram = Histogram(LATENCY_BOUNDS)
    for value in values:
        histogram.add(value, 2)
    for bounds in (OTEL_TOKEN, VLLM_TOKEN, LATENCY_BOUNDS):
        want = [2 * sum(value <= bound for value in values) for bound in (*bounds, math.inf)]
        assert histogram.below(bounds) == want


def test_every_exported_list_is_counted_exactly() -> None:
    for made, exported in (
        (TTFT_BOUNDS, (OTEL_TTFT, VLLM_TTFT)),
        (LATENCY_BOUNDS, (OTEL_TOKEN, VLLM_TOKEN)),
        (REQUEST_BOUNDS, (OTEL_REQUEST, VLLM_REQUEST)),
        (QUEUE_BOUNDS, (TTFT_BOUNDS, VLLM_REQUEST)),
    ):
        assert list(made) == sorted(set(made))
        assert all(set(bounds) <= set(made) for bounds in exported)


@pytest.mark.parametrize("name", ["lognormal", "exponential", "uniform"])
def test_quantiles_of_many(name: str) -> None:
    generator = np.random.default_rng(7)
    values = {
        "lognormal": generator.lognormal(-4, 2, 20_000),
        "exponential": generator.exponential(0.02, 20_000) + 1e-6,
        "uniform": generator.uniform(0.001, 3, 20_000),
    }[name]
    histogram = Histogram()
    for value in values:
        histogram.add(float(value))
    for share in QUANTILES:
        assert histogram.quantile(share) == pytest.approx(float(np.quantile(values, share)), rel=ACCURACY + 0.005)
    shot = histogram.snapshot()
    assert shot["count"] == 20_000
    assert shot["sum"] == pytest.approx(values.sum()) and shot["mean"] == pytest.approx(values.mean())
    assert shot["max"] == values.max()


@pytest.mark.parametrize("value", [0.0, 1e-9, 1e-6, 1e6, 1e9, math.inf])
def test_no_value_is_out_of_range(value: float) -> None:
    histogram = Histogram()
    histogram.add(value, 3)
    assert histogram.count == 3
    assert histogram.quantile(0.5) == value


def test_an_empty_histogram_says_zero() -> None:
    assert set(Histogram().snapshot().values()) == {0}


def test_a_value_can_count_many_times() -> None:
    once, often = Histogram(), Histogram()
    for value, count in ((0.1, 5), (2.0, 3)):
        once.add(value, count)
        for _ in range(count):
            often.add(value)
    assert once.snapshot() == pytest.approx(often.snapshot())


def plan(rows: list[tuple[int, int, int]], bucket_tokens: int, num_steps: int = 1) -> Plan:
    """A plan of rows (length of the prompt, start, tokens)."""
    planned: list[PlannedRow] = []
    for prompt_len, start, count in rows:
        sequence = Sequence.of(Request((1,) * prompt_len), 0, max_len=1000, order=1, arrival=0.0)
        planned.append(PlannedRow(sequence, start, count, draws=start + count >= prompt_len))
    return Plan(tuple(planned), Bucket(bucket_tokens, 4, "mixed"), num_steps, admitted=(), copies=())


def test_a_chunk_that_does_not_draw_is_prefill() -> None:
    metrics = Metrics(max_batch=4, num_pages=10)
    metrics.ran(plan([(9, 0, 1)], 4), host=0, device=0, wait=0)
    assert (metrics.prefill.prompt_tokens, metrics.prefill.drawn, metrics.decode.calls) == (1, 0, 0)


def test_a_request_from_end_to_end() -> None:
    metrics = Metrics(max_batch=4, num_pages=10)
    metrics.submitted(100)
    metrics.submitted(50)
    metrics.looked_up(100, 64)
    metrics.looked_up(50, 0)
    metrics.admitted(0.25)
    metrics.levels(waiting=1, running=1, pages_used=7)
    metrics.levels(waiting=0, running=2, pages_used=9)
    metrics.ran(plan([(100, 64, 36), (5, 20, 1)], 64), host=0.001, device=0.1, wait=0.09)
    metrics.first_token(0.5)
    metrics.ran(plan([(100, 100, 1), (5, 21, 1)], 4, num_steps=8), host=0.001, device=0.2, wait=0.1)
    for seconds in (0.2, *[0.0] * 7):  # of one call of the device
        metrics.next_token(seconds)
    metrics.preempted()
    metrics.compiled()
    metrics.compiled(unexpected=True)
    metrics.answered(1.6, 9)
    metrics.answered(0.0, 1)  # one token has no time between tokens
    metrics.finished("length", 1.5)
    metrics.ran_for(0.5, 0.75, 9)
    metrics.finished("error", 0.1, error="DeviceError")
    metrics.levels(waiting=0, running=0, pages_used=0)

    shot = json.loads(json.dumps(metrics.snapshot(), allow_nan=False))
    assert (shot["requests"], shot["prompt_tokens"], shot["output_tokens"]) == (2, 150, 9)
    assert shot["outcomes"] == {"length": 1, "error": 1}
    assert shot["prefix_hit_rate"] == pytest.approx(64 / 150) and shot["prefix_queries"] == 2
    assert (shot["peak_waiting"], shot["peak_running"], shot["peak_pages_used"]) == (1, 2, 9)
    assert (shot["waiting"], shot["running"], shot["pages_used"]) == (0, 0, 0)
    assert (shot["preemptions"], shot["compiles"], shot["unexpected_compiles"]) == (1, 2, 1)
    prefill, decode = shot["prefill"], shot["decode"]
    assert (prefill["calls"], prefill["steps"], prefill["tokens"], prefill["prompt_tokens"]) == (1, 1, 37, 36)
    assert (decode["calls"], decode["steps"], decode["tokens"], decode["bucket_tokens"]) == (1, 8, 16, 32)
    assert (prefill["rows"], prefill["drawn"], decode["rows"], decode["drawn"]) == (2, 2, 16, 16)
    assert prefill["read"] == 100 + 21 and prefill["attended"] == sum(range(65, 101)) + 21
    assert decode["read"] == decode["attended"] == sum(101 + k + 22 + k for k in range(8))
    assert decode["seconds"] == 0.2
    assert shot["padding_waste"] == pytest.approx(1 - 53 / 96)
    assert shot["batch_occupancy"] == pytest.approx(18 / (9 * 4))
    assert shot["inter_token"]["count"] == 8 and shot["inter_token"]["sum"] == 0.2
    assert shot["ttft"]["max"] == 0.5 and shot["request_time"]["count"] == 2
    assert {key: each.count for key, each in metrics.durations.items()} == {
        ("generate", ""): 1,
        ("generate", "DeviceError"): 1,
    }
    assert shot["token_time"]["count"] == 1 and shot["token_time"]["sum"] == pytest.approx(0.2)
    assert (shot["prefill_time"]["sum"], shot["decode_time"]["sum"], shot["run_time"]["sum"]) == (0.5, 0.75, 1.25)
    assert shot["prompt_sizes"]["sum"] == 150 and shot["answer_sizes"]["sum"] == 9
    assert shot["step_tokens"]["count"] == 9 and shot["step_tokens"]["sum"] == 37 + 16


def test_levels_of_engines_that_count_together_are_added() -> None:
    metrics = Metrics(max_batch=4, num_pages=10)
    metrics.levels(waiting=1, running=2, pages_used=3, pages_cached=4, part=1)
    metrics.levels(waiting=1, running=4, pages_used=5, pages_cached=0, part=2)
    metrics.levels(waiting=0, running=2, pages_used=3, pages_cached=1, part=1)
    assert (metrics.waiting, metrics.running, metrics.pages_used, metrics.pages_cached) == (1, 6, 8, 1)
    assert metrics.peak_running == 6 and metrics.peak_waiting == 2
    json.dumps(metrics.snapshot())


def test_nothing_yet_is_no_division_by_zero() -> None:
    shot = Metrics(max_batch=1, num_pages=1).snapshot()
    assert shot["padding_waste"] == shot["batch_occupancy"] == shot["prefix_hit_rate"] == 0


def test_memory_stays_flat() -> None:
    metrics = Metrics(max_batch=4, num_pages=10)

    def size() -> int:
        histogram = metrics.inter_token
        sizes = (
            sys.getsizeof(each) for each in (histogram._counts, histogram._exact, metrics.outcomes, metrics.durations)
        )
        return sum(sizes) + len(vars(metrics))

    metrics.finished("length", 1.0)
    before = size()
    for index in range(20_000):
        metrics.next_token(index * 1e-4)
        metrics.finished("length", index * 1e-3)
    assert size() == before


def test_readers_see_whole_numbers_while_one_writes() -> None:
    metrics = Metrics(max_batch=4, num_pages=10)
    done = threading.Event()
    problems: list[object] = []

    def read() -> None:
        last = 0
        while not done.is_set():
            try:
                count = metrics.snapshot()["inter_token"]["count"]
                if count < last:
                    problems.append((last, count))
                last = count
            except Exception as error:
                problems.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for index in range(5_000):
        metrics.next_token(index * 1e-5)
        metrics.finished("stop", 1.0)
    done.set()
    for reader in readers:
        reader.join()
    assert problems == [] and metrics.inter_token.count == 5_000


def test_engines_that_count_together_lose_nothing() -> None:
    metrics = Metrics(max_batch=4, num_pages=10)

    def write(part: int) -> None:
        for _ in range(4_000):
            metrics.submitted(3)
            metrics.next_token(0.01)
            metrics.finished("length", 0.1, error=f"Error{part % 2}")
            metrics.levels(waiting=0, running=part, pages_used=1, part=part)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        writers = [threading.Thread(target=write, args=(part,)) for part in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
    finally:
        sys.setswitchinterval(interval)
    assert metrics.requests == metrics.output_tokens == metrics.inter_token.count == 16_000
    assert metrics.outcomes == {"length": 16_000} and metrics.request_time.count == 16_000
    assert [each.count for each in metrics.durations.values()] == [8_000, 8_000]
    assert (metrics.running, metrics.pages_used) == (0 + 1 + 2 + 3, 4)


def test_a_token_costs_next_to_nothing() -> None:
    # About half a microsecond where nothing checks annotations; here every call is checked.
    metrics = Metrics(max_batch=4, num_pages=10)
    start = time.process_time()
    for _ in range(10_000):
        metrics.next_token(0.02)
    assert time.process_time() - start < 0.5
