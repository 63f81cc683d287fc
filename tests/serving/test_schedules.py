"""Random schedules: whatever happens, every answer is the one computed by hand and no page is lost."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import jaxtyping
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distaff.serving.scheduler_config import SchedulerConfig
from distaff.serving.sequence import Status
from distaff.serving.types import Kind

from .driver import BUCKETS, Driver

WARM_UP = ((BUCKETS[0],), BUCKETS[:2], (BUCKETS[3],), (BUCKETS[5],), BUCKETS[:4])
POOLS = (
    ((None,), (12,)),
    ((None,), (40,)),
    ((None, 6), (14, 9)),
    ((7,), (8,)),
    ((None, 3, 9), (16, 7, 9)),
    ((None, None), (13, 15)),
)


@dataclass
class Counts:
    schedules: int = 0
    plans: int = 0
    preemptions: int = 0
    evictions: int = 0
    hit_tokens: int = 0
    copies: int = 0
    resets: int = 0
    multi_steps: int = 0


COUNTS = Counts()


def run_schedule(seed: int) -> None:
    """One engine's life: about 20 events drawn from `seed`, then all work is finished."""
    rng = random.Random(seed)
    windows, num_pages = rng.choice(POOLS)
    config = SchedulerConfig(
        policy=rng.choice(["continuous", "continuous", "continuous", "dynamic", "static"]),
        max_batch=rng.choice([1, 3, 5, 8]),
        batch_timeout=rng.choice([0.0, 0.5]),
        max_step_tokens=rng.choice([8, 32]),
        max_decode_steps=rng.choice([1, 4, 8]),
        fixed_chunk=rng.choice([None, None, 4, 6, 8]),
        aging_seconds=rng.choice([1.0, 10.0]),
        prefix_cache=rng.random() < 0.9,
    )
    driver = Driver(
        config,
        page_size=4,
        num_pages=num_pages,
        windows=windows,
        lag=rng.choice([0, 1, 1, 1, 2]),
        eos=rng.choice([None, 7]),
        vocab_size=rng.choice([13, 101]),
        max_len=64,
    )
    pressed = rng.random() < 0.4  # many short prompts with long answers: pages run out late
    stems = [[rng.randrange(12) for _ in range(rng.choice([2] if pressed else [4, 8, 15, 16, 24]))] for _ in range(3)]
    for _ in range(rng.randint(5, 35)):
        event = rng.random()
        if event < 0.3:
            _submit(driver, rng, stems, [30] if pressed else [1, 2, 5, 9, 20])
        elif event < 0.38 and driver.sequences:
            driver.scheduler.finish(rng.choice(driver.sequences))
            driver.scheduler.check_integrity()
        elif event < 0.4:
            driver.reset()
            COUNTS.resets += 1
        elif event < 0.43:
            driver.scheduler.flush()
        elif event < 0.46 and driver.in_flight:
            driver.read()
        elif event < 0.5:
            driver.step(rng.choice(WARM_UP))
        else:
            driver.clock.now += rng.random()
            driver.step()
    driver.run()
    _count(driver)
    driver.check_empty()


def _submit(driver: Driver, rng: random.Random, stems: list[list[int]], answers: list[int]) -> None:
    stem = rng.choice(stems)
    prompt = stem[: rng.randint(1, len(stem))] + [rng.randrange(12) for _ in range(rng.choice([0, 0, 1, 3, 9]))]
    old = [s for s in driver.sequences if len(s.tokens) > s.prompt_len]
    if old and rng.random() < 0.3:  # the next turn of a chat
        prompt = [*rng.choice(old).tokens[:50], rng.randrange(12)]
    kind = rng.choice([Kind.GENERATE] * 6 + [Kind.SCORE, Kind.EMBED])
    driver.submit(
        prompt,
        rng.choice(answers),
        n=rng.choice([1, 1, 1, 2, 3]) if kind is Kind.GENERATE else 1,
        priority=rng.choice([0, 0, 1, 5]),
        salt=rng.choice([None, None, "a", "b"]),
        use_prefix_cache=rng.random() < 0.85,
        kind=kind,
        prompt_logprobs=rng.choice([None, None, None, 2]) if kind is Kind.GENERATE else None,
        seed=rng.randrange(4),
    )


def _count(driver: Driver) -> None:
    assert all(s.status is Status.FINISHED for s in driver.sequences)
    COUNTS.schedules += 1
    COUNTS.plans += len(driver.plans)
    COUNTS.preemptions += driver.scheduler.num_preemptions
    COUNTS.evictions += driver.scheduler.prefix_stats.evictions
    COUNTS.hit_tokens += driver.scheduler.prefix_stats.hit_tokens
    COUNTS.copies += sum(len(pairs) for plan in driver.plans for pairs in plan.copies)
    COUNTS.multi_steps += sum(plan.num_steps > 1 for plan in driver.plans)


@pytest.fixture(scope="module", autouse=True)
def unchecked_annotations() -> Iterator[None]:
    """Millions of short calls: looking at their annotations would take six times as long as the calls."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@settings(
    max_examples=2000, deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(st.integers(0, 2**40))
def test_random_schedules(seed: int) -> None:
    run_schedule(seed)


def test_the_schedules_met_everything() -> None:
    """Runs behind the test above: what it found must have been put to the test."""
    if COUNTS.schedules < 2000:
        pytest.skip("the random schedules did not run in this process")
    print(COUNTS)
    assert COUNTS.preemptions > 500 and COUNTS.evictions > 5000 and COUNTS.hit_tokens > 5000
    assert COUNTS.copies > 500 and COUNTS.resets > 200 and COUNTS.multi_steps > 1000
