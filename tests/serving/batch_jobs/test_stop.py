"""A job that is asked to stop: by a signal or by another host, once, and it has its time and no more."""

import os
import signal
import threading
import time
from contextlib import suppress

import pytest

from distaff.serving.batch_jobs import stop
from distaff.serving.batch_jobs.stop import StopSignals


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the process would have ended with."""
    codes: list[int] = []
    monkeypatch.setattr(stop.os, "_exit", codes.append)
    return codes


def test_whoever_is_asked_by_another_host_tells_it_once(exits: list[int]) -> None:
    told, late = threading.Semaphore(0), threading.Event()
    with StopSignals(grace=60) as signals:
        signals.tell(told.release)
        assert not signals.asked
        for _ in range(3):
            signals.ask()
        assert told.acquire(timeout=10) and signals.asked
        signals.tell(late.set)
        assert late.wait(10) and not told.acquire(timeout=0.1)
    signals.ask()
    assert exits == []


def test_a_signal_is_told_too_and_a_second_one_ends_the_process(
    exits: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    told = threading.Event()
    with StopSignals(grace=60) as signals:
        signals.tell(told.set)
        os.kill(os.getpid(), signal.SIGTERM)
        assert told.wait(10) and signals.asked and exits == []
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(exits)
    assert exits == [75] and "a second signal came; --resume goes on" in capsys.readouterr().err


def test_a_signal_behind_the_word_of_another_host_is_the_first(exits: list[int]) -> None:
    """All hosts get one, and one of them is quicker."""
    with StopSignals(grace=60) as signals:
        signals.ask()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        assert exits == []
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(exits)
    assert exits == [75]


def test_other_signals_give_no_more_time(exits: list[int]) -> None:
    with StopSignals(grace=0.3) as signals:
        signals.ask()
        began = time.monotonic()
        while not exits and time.monotonic() - began < 10:
            with suppress(BrokenPipeError):  # nobody listens in a process that has ended
                signals._write.send(bytes([signal.SIGWINCH]))
            time.sleep(0.02)
    assert exits == [75] and time.monotonic() - began < 5


def wait_for(exits: list[int]) -> None:
    until = time.monotonic() + 10
    while not exits and time.monotonic() < until:
        time.sleep(0.01)
