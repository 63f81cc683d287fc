"""Plans written by hand, one property of the scheduler each."""

import time

import pytest

from distaff.backends.base import CacheGroup
from distaff.serving.page_pool import IntegrityError
from distaff.serving.plan import Bucket
from distaff.serving.sampling_params import SamplingParams
from distaff.serving.scheduler import Scheduler
from distaff.serving.scheduler_config import SchedulerConfig
from distaff.serving.sequence import Sequence, Status
from distaff.serving.types import Request

from .driver import MIXED, Driver, shape, text

# Several steps in one call


def test_steps_on_the_device_end_with_the_nearest_end() -> None:
    driver = Driver(SchedulerConfig(max_batch=4, max_decode_steps=8))
    driver.submit(text(4), 20)
    driver.submit(text(5, 40), 4)
    plans = [driver.step() for _ in range(3)]
    assert [plan.num_steps for plan in plans if plan] == [1, 3, 8]
    assert [len(plan.rows) for plan in plans if plan] == [2, 2, 1]
    driver.run()


def test_steps_are_single_while_somebody_can_join_and_many_when_nobody_can() -> None:
    driver = Driver(SchedulerConfig(max_batch=1, max_decode_steps=4))
    driver.submit(text(4), 20)
    driver.submit(text(5, 40), 4)
    assert [plan.num_steps for plan in (driver.step(), driver.step()) if plan] == [1, 4], "the only slot is taken"
    driver = Driver(SchedulerConfig(max_batch=2, max_decode_steps=4))
    driver.submit(text(4), 20)
    driver.submit(text(40, 40), 4)
    assert [plan.num_steps for plan in (driver.step(), driver.step(), driver.step()) if plan] == [1, 1, 3]


def test_steps_are_as_many_as_there_are_pages_for() -> None:
    driver = Driver(SchedulerConfig(max_batch=1, max_decode_steps=16), num_pages=(3,))
    driver.submit(text(4), 9)
    assert [plan.num_steps for plan in (driver.step(), driver.step()) if plan] == [1, 8]
    driver = Driver(SchedulerConfig(max_batch=2, max_decode_steps=16), num_pages=(5,))
    driver.submit(text(4), 9)
    driver.submit(text(4, 40), 9)
    steps = [plan.num_steps for plan in (driver.step(), driver.step(), driver.step()) if plan]
    assert steps[:2] == [1, 4], "eight steps would take three pages of each"
    driver.run()


# Prefixes


def test_a_known_prompt_is_not_computed_again() -> None:
    driver = Driver(SchedulerConfig(max_batch=4))
    driver.submit(text(12), 1)
    driver.run()
    driver.submit([*text(12), 77], 1)
    assert shape(driver.step()) == [(1, 12, 1, True)]
    driver.run()
    assert driver.sequences[1].num_cached == 12
    assert driver.scheduler.prefix_stats.hit_tokens == 12


def test_a_partly_known_page_is_copied() -> None:
    driver = Driver(SchedulerConfig(max_batch=4))
    driver.submit(text(8), 1)
    driver.run()
    driver.submit([*text(7), 77, 78], 1)
    plan = driver.step()
    assert plan is not None and shape(plan) == [(1, 7, 2, True)]
    ((source, destination),) = plan.copies[0]
    assert source != destination and driver.sequences[1].pages[0][1] == destination
    driver.run()


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    driver = Driver(SchedulerConfig(max_batch=4))
    for order in range(2):
        driver.submit(text(8), 1)
        assert shape(driver.step()) == [(order, 7 * order, 8 - 7 * order, True)]
        driver.run()


def test_a_sequence_waits_for_a_prefix_that_is_in_flight() -> None:
    driver = Driver(SchedulerConfig(max_batch=4, max_decode_steps=8))
    driver.submit(text(10), 3, n=3)
    driver.submit(text(10, 50), 3)
    assert shape(driver.step()) == [(0, 0, 10, True), (3, 0, 10, True)], "others go past"
    plan = driver.step()
    assert plan is not None and plan.num_steps == 1
    assert shape(plan) == [(0, 10, 1, True), (3, 10, 1, True), (1, 8, 2, True), (2, 8, 2, True)]
    driver.run()


def test_a_conversation_finds_its_last_turn() -> None:
    driver = Driver(SchedulerConfig(max_batch=4))
    driver.submit(text(9), 12)
    driver.run()
    answer = driver.sequences[0].tokens
    driver.submit([*answer, 5, 6], 1)
    # Of 21 tokens the last one was never computed: five full pages.
    assert shape(driver.step()) == [(1, 20, 3, True)]
    driver.run()


@pytest.mark.parametrize("seed", range(24))
def test_a_call_that_ended_early_leaves_no_page_half_written(seed: int) -> None:
    driver = Driver(SchedulerConfig(max_batch=2, max_decode_steps=8), eos=7, vocab_size=13)
    driver.submit(text(5), 40, seed=seed)
    driver.run()
    driver.submit([*driver.sequences[0].tokens, 5, 6], 3)
    driver.run()  # compares every text with the one computed by hand


def test_salts_and_opting_out_keep_prefixes_apart() -> None:
    driver = Driver(SchedulerConfig(max_batch=8))
    for salt, share in ((None, True), ("a", True), (None, False)):
        driver.submit(text(12), 1, n=2, salt=salt, use_prefix_cache=share)
        driver.run()
    cached = [s.num_cached for s in driver.sequences]
    assert cached == [0, 11, 0, 11, 0, 11], "siblings share in any case"
    driver.submit(text(12), 1, use_prefix_cache=False)
    driver.submit(text(12), 1, salt="b")
    driver.run()
    assert [s.num_cached for s in driver.sequences[6:]] == [0, 0]
    driver.scheduler.tables.cache.drop(("shared", None))
    for salt in "ab":
        driver.scheduler.tables.cache.drop(("shared", salt))
    pool = driver.scheduler.tables.cache.pools[0]
    assert pool.num_free == pool.num_pages, "nothing is left of those that opted out"


def test_prefixes_can_be_switched_off() -> None:
    driver = Driver(SchedulerConfig(max_batch=4, prefix_cache=False))
    driver.submit(text(12), 2, n=2)
    driver.run()
    assert [s.num_cached for s in driver.sequences] == [0, 0] and driver.scheduler.prefix_stats.queries == 0
    assert driver.scheduler.tables.cache.pools[0].num_free == 64


# Windows


def test_pages_behind_a_window_are_freed() -> None:
    driver = Driver(SchedulerConfig(max_batch=1, max_decode_steps=1), windows=(None, 6), num_pages=(16, 6))
    driver.submit(text(10), 40)
    (sequence,) = driver.sequences
    while (plan := driver.step()) is not None and sequence.status is Status.RUNNING:
        ((_, start, num_tokens, _),) = plan.rows
        freed = max(0, start - 5) // 4
        assert sequence.pages[1][:freed] == [-1] * freed and -1 not in sequence.pages[1][freed:]
        assert num_tokens > 1 or len(sequence.pages[1]) - freed <= 3
        assert -1 not in sequence.pages[0]
    driver.run()
    driver.check_empty()


def test_a_prompt_longer_than_the_window_pool_is_cut_to_it() -> None:
    driver = Driver(SchedulerConfig(max_batch=1), windows=(None, 6), num_pages=(16, 4))
    driver.submit(text(40), 10)
    driver.run()
    driver.check_empty()


# Memory


def test_what_can_never_fit_is_known_in_numbers() -> None:
    groups = [CacheGroup(1, 1, 1), CacheGroup(1, 1, 1, window=6)]
    scheduler = Scheduler(SchedulerConfig(), 4, (5, 4), groups)
    assert scheduler.pages_needed(20) == (5, 3) and scheduler.pages_needed(21) == (6, 3)
    assert scheduler.fits(10, 21) and not scheduler.fits(10, 22)
    assert scheduler.fits(20, 20) and not scheduler.fits(21, 21)


def test_admission_leaves_pages_for_those_that_run() -> None:
    driver = Driver(SchedulerConfig(max_batch=4, max_decode_steps=1), num_pages=(7,))
    for i in range(3):
        driver.submit(text(8, 20 * i), 4)
    # Each takes two pages and counts on a third: the third sequence waits.
    assert len(shape(driver.step())) == 2
    driver.run()
    assert driver.scheduler.num_preemptions == 0


def pressed(lag: int = 1) -> Driver:
    """Three sequences that grow beyond a pool of nine pages together."""
    driver = Driver(SchedulerConfig(max_batch=3, max_decode_steps=1), num_pages=(9,), lag=lag)
    for i in range(3):
        driver.submit(text(3, 20 * i), 20)
    return driver


def test_the_youngest_is_preempted_and_its_text_does_not_change() -> None:
    driver = pressed(lag=2)
    victims: list[int] = []
    while not victims:
        plan = driver.step()
        assert plan is not None
        victims += [s.order for s in plan.preempted]
    assert victims == [2]
    victim = driver.sequences[2]
    assert victim.status is Status.WAITING and victim.slot is None and not victim.pages
    assert victim.num_unread > 0, "its last token is still on its way"
    assert [row[0] for row in shape(driver.step())] == [0, 1], "nobody starts before it has been read"
    driver.run()  # compares every text with the one computed by hand
    assert victim.num_preemptions >= 1 and driver.sequences[0].num_preemptions == 0
    driver.check_empty()


def test_the_lowest_priority_is_preempted_first() -> None:
    driver = Driver(SchedulerConfig(max_batch=3, max_decode_steps=1), num_pages=(9,))
    for i, priority in enumerate((1, 0, 0)):
        driver.submit(text(3, 20 * i), 20, priority=priority)
    driver.run()
    assert [s.num_preemptions > 0 for s in driver.sequences] == [True, False, True] or [
        s.num_preemptions > 0 for s in driver.sequences
    ] == [True, False, False]


def test_the_oldest_is_never_preempted_and_all_end_in_order() -> None:
    driver = Driver(SchedulerConfig(max_batch=8, max_decode_steps=1), num_pages=(6,))
    ended: list[int] = []
    for i in range(8):
        driver.submit(text(2, 10 * i), 20)
    while driver.scheduler.num_running or driver.scheduler.waiting:
        driver.step()
        ended += [s.order for s in driver.sequences if s.status is Status.FINISHED and s.order not in ended]
    driver.run()
    assert ended[0] == 0 and driver.sequences[0].num_preemptions == 0
    assert driver.scheduler.num_preemptions > 0


def test_a_preempted_sequence_goes_before_those_that_came_later() -> None:
    driver = pressed()
    while not driver.scheduler.num_preemptions:
        driver.step()
    driver.submit(text(3, 70), 2)
    assert [s.order for s in driver.scheduler.waiting] == [2, 3]
    driver.run()


# Who goes first


def test_priorities_then_arrival() -> None:
    driver = Driver(SchedulerConfig(max_batch=1, max_decode_steps=1))
    for i, priority in enumerate((2, 1, 0, 1)):
        driver.submit(text(3, 20 * i), 1, priority=priority)
    order = [shape(plan)[0][0] for plan in iter(driver.step, None) if plan]
    assert order == [2, 1, 3, 0]


def test_waiting_makes_up_for_priority() -> None:
    driver = Driver(SchedulerConfig(max_batch=1, max_decode_steps=1, aging_seconds=10))
    driver.submit(text(3), 1, priority=1)
    driver.clock.now = 9.0
    driver.submit(text(3, 20), 1, priority=0)
    driver.clock.now = 11.0
    driver.submit(text(3, 40), 1, priority=0)
    assert [s.order for s in driver.scheduler.waiting] == [1, 0, 2]


# Ends


@pytest.mark.parametrize("steps", range(7))
def test_a_sequence_can_be_given_up_at_any_moment(steps: int) -> None:
    driver = Driver(SchedulerConfig(max_batch=2, max_decode_steps=2), buckets=MIXED)
    driver.submit(text(20), 5)
    driver.submit(text(6, 30), 30)
    for _ in range(steps):
        driver.step()
    for sequence in driver.sequences:
        driver.scheduler.finish(sequence)
        driver.scheduler.finish(sequence)
        driver.scheduler.check_integrity()
    assert driver.step() is None or not driver.in_flight
    driver.in_flight.clear()
    assert len(driver.scheduler.roster.free_slots) == 2
    driver.check_empty()


def test_a_slot_is_free_as_soon_as_the_last_token_is_on_its_way() -> None:
    driver = Driver(SchedulerConfig(max_batch=1, max_decode_steps=1), lag=2)
    driver.submit(text(3), 1)
    driver.submit(text(3, 20), 1)
    assert shape(driver.step()) == [(0, 0, 3, True)]
    assert shape(driver.step()) == [(1, 0, 3, True)]
    assert driver.sequences[0].status is Status.DRAINING
    driver.run()


def test_after_a_reset_every_text_is_the_same() -> None:
    driver = Driver(SchedulerConfig(max_batch=2, max_decode_steps=2))
    for i in range(4):
        driver.submit(text(6, 20 * i), 9)
    for _ in range(3):
        driver.step()
    driver.reset()
    assert {s.status for s in driver.sequences} == {Status.WAITING}
    driver.run()
    driver.check_empty()


def test_more_tokens_than_were_drawn_are_refused() -> None:
    driver = Driver(SchedulerConfig())
    (sequence,) = driver.submit(text(3), 4)
    with pytest.raises(IntegrityError, match="more tokens"):
        driver.scheduler.note_tokens(sequence, [1])


@pytest.mark.parametrize("waiting", [0, 500])
def test_planning_256_rows_is_fast(waiting: int) -> None:
    """0.25 ms without annotation checks on 2 cores of 2025; the bound only catches work that grows with the text."""
    config = SchedulerConfig(max_batch=256, max_step_tokens=1024, max_decode_steps=1)
    scheduler = Scheduler(config, 16, (256 * 20,), [CacheGroup(1, 1, 1)])
    for i in range(256 + waiting):
        request = Request(tuple(text(4, i)), SamplingParams())
        scheduler.add(Sequence.of(request, 0, max_len=300, order=i, arrival=0.0))
    buckets = (Bucket(256, 256, "decode"), Bucket(1024, 256, "mixed"))
    assert scheduler.schedule(buckets) is not None
    seconds: list[float] = []
    for _ in range(100):
        started = time.perf_counter()
        plan = scheduler.schedule(buckets)
        seconds.append(time.perf_counter() - started)
        assert plan is not None and len(plan.rows) == 256
        for row in plan.rows:
            scheduler.note_tokens(row.sequence, [1])
    print(f"{1000 * sorted(seconds)[50]:.2f} ms")
    assert sorted(seconds)[50] < 0.01
