"""Random schedules: whatever happens, every answer is the one computed by hand and no page is lost."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jaxtyping
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from distaff.serving.plan import Bucket
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
FIELDS = st.fixed_dictionaries(
    {
        "n": st.sampled_from([1, 1, 1, 2, 3]),
        "priority": st.sampled_from([0, 0, 1, 5]),
        "salt": st.sampled_from([None, None, "a", "b"]),
        "use_prefix_cache": st.sampled_from([True, True, True, False]),
        "kind": st.sampled_from([*[Kind.GENERATE] * 6, Kind.SCORE, Kind.EMBED]),
        "prompt_logprobs": st.sampled_from([None, None, None, 2]),
        "seed": st.integers(0, 3),
    }
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


class Schedules(RuleBasedStateMachine):
    """One engine's life: requests come, are dropped, steps are planned and read, the device fails.

    The driver checks the scheduler's integrity after each step; in the end all work is finished and compared.
    """

    driver: Driver

    @initialize(
        pool=st.sampled_from(POOLS),
        policy=st.sampled_from(["continuous", "continuous", "continuous", "dynamic", "static"]),
        max_batch=st.sampled_from([1, 3, 5, 8]),
        batch_timeout=st.sampled_from([0.0, 0.5]),
        sizes=st.tuples(st.sampled_from([8, 32]), st.sampled_from([1, 4, 8])),
        fixed_chunk=st.sampled_from([None, None, 4, 6, 8]),
        aging=st.sampled_from([1.0, 10.0]),
        prefix_cache=st.sampled_from([True, True, True, False]),
        lag=st.sampled_from([0, 1, 1, 1, 2]),
        vocabulary=st.tuples(st.sampled_from([None, 7]), st.sampled_from([13, 101])),
        stems=st.lists(st.lists(st.integers(0, 11), min_size=2, max_size=24), min_size=3, max_size=3),
    )
    def begin(
        self,
        pool: tuple[tuple[int | None, ...], tuple[int, ...]],
        policy: Literal["continuous", "dynamic", "static"],
        max_batch: int,
        batch_timeout: float,
        sizes: tuple[int, int],
        fixed_chunk: int | None,
        aging: float,
        prefix_cache: bool,
        lag: int,
        vocabulary: tuple[int | None, int],
        stems: list[list[int]],
    ) -> None:
        config = SchedulerConfig(
            policy=policy,
            max_batch=max_batch,
            batch_timeout=batch_timeout,
            max_step_tokens=sizes[0],
            max_decode_steps=sizes[1],
            fixed_chunk=fixed_chunk,
            aging_seconds=aging,
            prefix_cache=prefix_cache,
        )
        windows, num_pages = pool
        eos, vocab_size = vocabulary
        self.stems = stems
        self.driver = Driver(
            config, page_size=4, num_pages=num_pages, windows=windows, lag=lag, eos=eos, vocab_size=vocab_size
        )

    @rule(
        stem=st.integers(0, 2),
        cut=st.integers(1, 24),
        tail=st.lists(st.integers(0, 11), max_size=9),
        max_tokens=st.sampled_from([1, 2, 5, 9, 20, 30, 30]),
        fields=FIELDS,
    )
    def submit(self, stem: int, cut: int, tail: list[int], max_tokens: int, fields: dict[str, Any]) -> None:
        self._submit(self.stems[stem][:cut] + tail, max_tokens, fields)

    @rule(turn=st.integers(0, 100), token=st.integers(0, 11), max_tokens=st.sampled_from([1, 5, 20]), fields=FIELDS)
    def submit_the_next_turn(self, turn: int, token: int, max_tokens: int, fields: dict[str, Any]) -> None:
        old = [s for s in self.driver.sequences if len(s.tokens) > s.prompt_len]
        if old:
            self._submit([*old[turn % len(old)].tokens[:50], token], max_tokens, fields)

    @rule(count=st.integers(1, 6), max_tokens=st.sampled_from([12, 30]))
    def submit_a_crowd(self, count: int, max_tokens: int) -> None:
        """Short prompts with long answers: pages run out late."""
        for number in range(count):
            self._submit(self.stems[number % 3][:2], max_tokens, {"seed": number})

    @rule(which=st.integers(0, 100))
    def drop(self, which: int) -> None:
        if self.driver.sequences:
            self.driver.scheduler.finish(self.driver.sequences[which % len(self.driver.sequences)])
            self.driver.scheduler.check_integrity()

    @rule(seconds=st.floats(0, 1), count=st.integers(1, 6))
    def step(self, seconds: float, count: int) -> None:
        for _ in range(count):
            self.driver.clock.now += seconds
            self.driver.step()

    @rule(ready=st.sampled_from(WARM_UP))
    def step_while_programs_are_compiled(self, ready: tuple[Bucket, ...]) -> None:
        self.driver.step(ready)

    @rule()
    def flush(self) -> None:
        self.driver.scheduler.flush()

    @precondition(lambda self: self.driver.in_flight)
    @rule()
    def read(self) -> None:
        self.driver.read()

    @rule(fails=st.sampled_from([True, False, False]))
    def lose_the_device(self, fails: bool) -> None:
        if fails:
            self.driver.reset()
            COUNTS.resets += 1

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.driver.run()
            _count(self.driver)
            self.driver.check_empty()

    def _submit(self, prompt: list[int], max_tokens: int, fields: dict[str, Any]) -> None:
        fields = dict(fields)
        if fields.get("kind", Kind.GENERATE) is not Kind.GENERATE:
            fields |= {"n": 1, "prompt_logprobs": None}
        self.driver.submit(prompt, max_tokens, **fields)


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


@pytest.mark.parametrize("count", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_random_schedules(count: int) -> None:
    how = settings(
        max_examples=count,
        stateful_step_count=14,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    run_state_machine_as_test(Schedules, settings=how)


@pytest.mark.slow
def test_the_schedules_met_everything() -> None:
    """Runs behind the test above: what it found must have been put to the test."""
    if COUNTS.schedules < 2000:
        pytest.skip("the random schedules did not run in this process")
    print(COUNTS)
    assert COUNTS.preemptions > 500 and COUNTS.evictions > 5000 and COUNTS.hit_tokens > 5000
    assert COUNTS.copies > 500 and COUNTS.resets > 200 and COUNTS.multi_steps > 1000
