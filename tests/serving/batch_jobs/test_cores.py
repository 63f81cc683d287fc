"""Processes of one machine share its cores."""

import os
import threading
from pathlib import Path

import pytest

from distaff.serving.batch_jobs.cores import Cores


def test_no_core_is_taken_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5, 6, 8})
    first, second = Cores(2, tmp_path), Cores(1, tmp_path)
    assert first.numbers == (4, 5) and second.numbers == (6,)
    assert Cores(2, tmp_path).numbers == ()  # and what it had tried is free again
    assert Cores(0, tmp_path).numbers == ()
    first.close()
    assert Cores(3, tmp_path).numbers == (4, 5, 8)


def test_a_thread_keeps_to_them_with_those_that_it_starts(tmp_path: Path) -> None:
    seen: list[set[int]] = []
    cores, before = Cores(1, tmp_path), os.sched_getaffinity(0)

    def work() -> None:
        cores.keep_to()
        child = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
        child.start()
        child.join()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    cores.close()
    assert seen == [set(cores.numbers)] and len(seen[0]) == 1 and os.sched_getaffinity(0) == before


def test_where_nobody_can_be_kept_to_a_core_nobody_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    cores = Cores(1, tmp_path)
    assert cores.numbers == ()
    cores.keep_to()
