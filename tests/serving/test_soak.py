"""A long time under load: requests come, go and are dropped at random, and nothing is left behind."""

import gc
import os
import random
import time
from pathlib import Path

import pytest

from distaff.backends.select import select_backend
from distaff.serving import Engine, EngineConfig, Generation, Kind, Request, SamplingParams, build_engine
from distaff.serving.cache_size import page_bytes

from ..golden.harness import GOLDEN, Golden

MAX_GROWTH = 48 * 2**20
"""Bytes by which resident memory may grow after the first third of the time."""


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def small_engine() -> Engine:
    """A model with full attention and windows, a cache of an eighth of what its rows could fill."""
    golden, backend = Golden(GOLDEN / "gemma3"), select_backend("auto")
    sizes = sum(page_bytes(g, backend, page_size=16, dtype="float32") for g in golden.config.cache_groups)
    config = EngineConfig(max_batch=16, context=128, max_step_tokens=64, kv_memory=sizes * 8 * 2)
    return build_engine(golden.config, golden.weights(), backend, config)


def a_request(rng: random.Random, shared: list[int]) -> Request:
    prompt = shared[: rng.randint(0, 48)] + [rng.randrange(90) for _ in range(rng.randint(1, 40))]
    kind = rng.choices([Kind.GENERATE, Kind.SCORE, Kind.EMBED], [18, 1, 1])[0]
    if kind is not Kind.GENERATE:
        return Request(tuple(prompt), kind=kind)
    params = SamplingParams(
        max_tokens=rng.randint(1, 39),
        temperature=rng.choice([0.0, 0.8]),
        top_p=rng.choice([1.0, 0.9]),
        n=rng.choice([1, 1, 1, 3]),
        logprobs=rng.choice([None, None, 2]),
        repetition_penalty=rng.choice([1.0, 1.2]),
    )
    return Request(tuple(prompt), params, priority=rng.randint(0, 2), use_prefix_cache=rng.random() < 0.9)


@pytest.mark.parametrize(
    "seconds", [pytest.param(60, marks=pytest.mark.slow), pytest.param(600, marks=pytest.mark.soak)]
)
def test_nothing_is_left_behind(seconds: int) -> None:
    rng = random.Random(seconds)
    shared = [rng.randrange(90) for _ in range(48)]
    with small_engine() as engine:
        engine.warm_up()
        engine.start()
        live: list[Generation] = []
        closed: list[Generation] = []
        done, level, start = 0, 0, time.monotonic()
        while (elapsed := time.monotonic() - start) < seconds:
            if len(live) < 60:
                live.append(engine.submit(a_request(rng, shared)))
            elif rng.random() < 0.3:
                closed.append(live.pop(rng.randrange(len(live))))
                closed[-1].close()
            else:
                live.pop(rng.randrange(len(live))).result()
            done += 1
            if not level and elapsed > seconds / 3:
                gc.collect()
                level = resident()
            if done % 200 == 0:
                engine.check_integrity()
                closed = [one for one in closed if not one._outbox.ended or one._outbox.error is not None]
        for generation in live:
            generation.close()
        while engine.num_requests:
            time.sleep(0.01)
        engine.check_integrity()
        snapshot = engine.metrics.snapshot()
        tables = engine.scheduler.tables
        tables.clear()
        assert [pool.num_free for pool in tables.cache.pools] == list(tables.num_pages)
        assert len(engine.scheduler.roster.free_slots) == 16
        gc.collect()
        growth = resident() - level
        print(f"{seconds} s: {snapshot['requests']} requests, {snapshot['outcomes']}, {snapshot['preemptions']} "
              f"preemptions, {snapshot['prefix_hit_tokens']} tokens hit, memory {growth / 2**20:+.1f} MiB")  # fmt: skip
        outcomes, errors = snapshot["outcomes"], [one._outbox.error for one in closed]
        assert not [error for error in errors if error is not None and "ended by its caller" not in str(error)]
        assert snapshot["preemptions"] > 0 and outcomes["abort"] > 10 and "error" not in outcomes
        assert snapshot["unexpected_compiles"] == 0 and growth < MAX_GROWTH
