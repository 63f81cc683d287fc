"""What waits to be written is bounded, and a disk that is full holds nobody up."""

import errno
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from distaff.serving.batch_jobs.answers import Answers
from distaff.serving.batch_jobs.errors import LineError
from distaff.serving.batch_jobs.journal import Journal
from distaff.serving.batch_jobs.line import Line
from distaff.serving.batch_jobs.writer import _LINE_TOKENS, _WAITING_TOKENS, Writer
from distaff.serving.http.spelling import Spelling

MOST = -(-_WAITING_TOKENS // _LINE_TOKENS)
LINES = MOST + 50


def refuse(writer: Writer, done: list[int]) -> None:
    for number in range(1, LINES + 1):
        writer.refuse(Line(number, "in", "a", "", {}, b""), LineError("code", "message"))
        done[0] = number


def test_who_answers_faster_than_the_disk_writes_waits(tmp_path: Path) -> None:
    journal, may_write, done = Journal(tmp_path / "out.journal"), threading.Event(), [0]
    append = journal.append

    def slow(record: Any) -> None:
        may_write.wait(60)
        append(record)

    journal.append = slow
    writer = Writer(journal, Answers("m", Spelling(None)))
    thread = threading.Thread(target=refuse, args=(writer, done))
    thread.start()
    until = time.monotonic() + 30
    while done[0] < MOST and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)
    assert done[0] == MOST
    may_write.set()
    thread.join()
    writer.close()
    assert journal.index.done == LINES
    journal.close()


def test_behind_a_full_disk_nobody_waits(tmp_path: Path) -> None:
    journal, done = Journal(tmp_path / "out.journal"), [0]

    def full(record: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    journal.append = full
    writer = Writer(journal, Answers("m", Spelling(None)))
    refuse(writer, done)
    with pytest.raises(OSError, match="No space left"):
        writer.close()
    assert done[0] == LINES and isinstance(writer.error, OSError)
    journal.close()


def test_a_run_tells_of_all_lines_that_it_was_given_before(tmp_path: Path) -> None:
    """Though they wait to be written when it speaks."""
    journal, may_write = Journal(tmp_path / "out.journal"), threading.Event()
    append = journal.append

    def slow(record: Any) -> None:
        may_write.wait(60)
        append(record)

    journal.append = slow
    writer = Writer(journal, Answers("m", Spelling(None)))
    for number in range(1, 4):
        writer.refuse(Line(number, "in", "a", "", {}, b""), LineError("code", "message"))
    writer.note({"run": "r", "seconds": 1.0})
    may_write.set()
    writer.close()
    assert journal.index.runs["r"]["lines"] == 3
    journal.close()
