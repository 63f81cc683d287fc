"""When waiting sequences start, by each policy."""

import pytest

from distaff.serving.scheduler_config import SchedulerConfig
from distaff.serving.sequence import Status

from .driver import Driver, shape, text


def test_dynamic_waits_for_company_but_not_for_long() -> None:
    driver = Driver(SchedulerConfig(policy="dynamic", max_batch=2, batch_timeout=0.5))
    assert driver.scheduler.wait_seconds() is None and driver.step() is None
    driver.clock.now = 1.0
    driver.submit(text(3), 4)
    driver.clock.now = 1.2
    assert driver.scheduler.wait_seconds() == pytest.approx(0.3) and driver.step() is None
    driver.clock.now = 1.5
    assert driver.scheduler.wait_seconds() == 0
    assert shape(driver.step()) == [(0, 0, 3, True)]
    driver.submit(text(3, 20), 4)
    driver.submit(text(3, 40), 4)
    assert [row[0] for row in shape(driver.step())] == [0], "nobody joins a batch that runs"
    driver.run()
    both = [plan for plan in driver.plans if len(plan.rows) == 2]
    assert both and {row.sequence.order for row in both[0].rows} == {1, 2}, "a full batch does not wait"


def test_static_waits_for_a_full_batch_or_the_end_of_the_input() -> None:
    driver = Driver(SchedulerConfig(policy="static", max_batch=2))
    driver.submit(text(3), 4)
    driver.clock.now = 1000.0
    assert driver.step() is None and driver.scheduler.wait_seconds() is None
    driver.submit(text(3, 20), 2)
    driver.submit(text(3, 40), 2)
    assert [row[0] for row in shape(driver.step())] == [0, 1]
    while driver.step() is not None or driver.in_flight:
        pass
    assert driver.sequences[2].status is Status.WAITING, "one is not a batch"
    driver.scheduler.flush()
    assert driver.scheduler.wait_seconds() == 0
    assert shape(driver.step()) == [(2, 0, 3, True)]
    driver.run()


def test_a_batch_that_lost_its_device_need_not_be_full_again() -> None:
    driver = Driver(SchedulerConfig(policy="static", max_batch=2))
    driver.submit(text(3), 4)
    driver.submit(text(3, 20), 9)
    driver.step()
    driver.scheduler.finish(driver.sequences[0])
    driver.reset()
    assert shape(driver.step()) == [(1, 0, 3, True)]
    driver.run()
