"""Rounds are done by a thread, or by whoever waits."""

import threading
import time

from distaff.serving.rounds import Rounds


class Work:
    """So many rounds with something to do."""

    def __init__(self, left: int, wait: float | None = None) -> None:
        self.left, self.flushed, self.steps, self.ended = left, 0, 0, False
        self.wait = wait
        self.idle = threading.Event()
        self.rounds = Rounds(
            "test", step=self.step, wait_seconds=lambda: self.wait, flush=self.flush, ended=lambda: self.ended
        )

    def step(self) -> bool:
        self.steps += 1
        if not self.left:
            self.idle.set()
            return False
        self.left -= 1
        return True

    def flush(self) -> None:
        self.flushed += 1
        self.rounds.wake()


def test_whoever_waits_does_a_round_and_says_that_nothing_more_comes_where_there_is_nothing_to_do() -> None:
    work = Work(left=1)
    work.rounds.pump()
    assert (work.steps, work.flushed) == (1, 0)
    work.rounds.pump()
    assert (work.steps, work.flushed) == (2, 1)
    assert work.rounds.for_reader() == work.rounds.pump


def test_a_reader_sleeps_no_longer_than_there_is_nothing_to_do_and_never_long() -> None:
    for wait, least, most in ((0.02, 0.02, 1.0), (3600.0, 0.05, 1.0)):
        started = time.monotonic()
        Work(left=0, wait=wait).rounds.pump()
        assert least <= time.monotonic() - started < most


def test_a_thread_works_sleeps_until_it_is_woken_and_ends() -> None:
    work = Work(left=3)
    work.rounds.start()
    work.rounds.start()  # changes nothing
    assert work.idle.wait(10) and work.left == 0 and work.rounds.for_reader() is None
    steps = work.steps
    work.idle.clear()
    work.left = 2
    assert not work.idle.wait(0.05) and work.steps == steps  # asleep
    work.rounds.wake()
    assert work.idle.wait(10) and work.left == 0
    work.ended = True
    work.rounds.join()
    assert not [thread for thread in threading.enumerate() if thread.name == "test"]
