"""How a step is filled: which rows, and how many tokens of each prompt."""

from distaff.serving.scheduler_config import SchedulerConfig
from distaff.serving.types import Kind

from .driver import BUCKETS, MIXED, Driver, shape, text


def test_decode_rows_come_first_and_prompts_fill_the_step() -> None:
    driver = Driver(SchedulerConfig(max_batch=4, max_decode_steps=1), buckets=MIXED)
    driver.submit(text(5), 4)
    plan = driver.step()
    assert plan is not None and plan.bucket == MIXED[1] and shape(plan) == [(0, 0, 5, True)]
    driver.submit(text(20, 30), 4)
    assert shape(driver.step()) == [(0, 5, 1, True), (1, 0, 15, False)]
    assert shape(driver.step()) == [(0, 6, 1, True), (1, 15, 5, True)]
    plan = driver.step()
    assert plan is not None and plan.bucket == MIXED[0]
    assert shape(plan) == [(0, 7, 1, True), (1, 20, 1, True)]
    driver.run()
    driver.check_empty()


def test_deterministic_chunks_are_cut_at_fixed_positions_only() -> None:
    driver = Driver(SchedulerConfig(max_batch=4, max_decode_steps=1, fixed_chunk=8), buckets=MIXED)
    driver.submit(text(3), 30)
    driver.step()
    driver.submit(text(30, 30), 2)
    cuts = [row for _ in range(4) for row in shape(driver.step()) if row[0] == 1]
    assert cuts == [(1, 0, 8, False), (1, 8, 8, False), (1, 16, 14, True), (1, 30, 1, True)]


def test_a_fixed_chunk_that_decode_rows_leave_no_room_for_goes_first() -> None:
    driver = Driver(SchedulerConfig(max_batch=4, max_decode_steps=1, fixed_chunk=16), buckets=MIXED)
    for i in range(2):
        driver.submit(text(3, i), 40)
    driver.step()
    driver.submit(text(20, 50), 2)
    driver.step()
    assert shape(driver.step()) == [(2, 0, 16, False)]
    driver.run()


def test_decode_buckets_alone_read_prompts_token_by_token() -> None:
    driver = Driver(SchedulerConfig(max_batch=4), buckets=BUCKETS)
    driver.submit(text(3), 2)
    for expected in ([(0, 0, 1, False)], [(0, 1, 1, False)], [(0, 2, 1, True)], [(0, 3, 1, True)]):
        plan = driver.step(BUCKETS[:1])
        assert shape(plan) == expected and plan is not None and plan.bucket == BUCKETS[0]
    assert driver.step(BUCKETS[:1]) is None
    driver.run()


def test_rows_take_turns_where_the_bucket_is_too_small_for_all() -> None:
    driver = Driver(SchedulerConfig(max_batch=4, max_decode_steps=1))
    for i in range(3):
        driver.submit(text(3, 10 * i), 20)
    driver.step()
    assert [shape(driver.step(BUCKETS[:1]))[0][0] for _ in range(6)] == [0, 1, 2, 0, 1, 2]
    driver.run()


def test_without_a_bucket_the_engine_looks_again_soon() -> None:
    driver = Driver(SchedulerConfig())
    driver.submit(text(3), kind=Kind.SCORE)
    assert driver.scheduler.wait_seconds() == 0
    assert driver.step(BUCKETS[:4]) is None
    assert 0 < (driver.scheduler.wait_seconds() or 0) < 0.1
    driver.run()


def test_prompt_logits_are_computed_in_prompt_buckets_past_the_prefix_cache() -> None:
    driver = Driver(SchedulerConfig(max_batch=4))
    driver.submit(text(12), 1)
    driver.run()
    driver.submit(text(12), 3, prompt_logprobs=1)
    driver.submit(text(12), kind=Kind.EMBED)
    plan = driver.step()
    assert plan is not None and plan.bucket.kind == "prompt"
    assert shape(plan) == [(1, 0, 12, True), (2, 0, 12, False)]
    plan = driver.step()
    assert plan is not None and plan.bucket.kind == "decode"
    driver.run()
    assert [s.num_cached for s in driver.sequences] == [0, 0, 0]
