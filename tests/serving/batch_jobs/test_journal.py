"""The journal: torn ends, full disks, and who may write it."""

import errno
import os
from pathlib import Path

import pytest

from distaff.serving.batch_jobs import journal as module
from distaff.serving.batch_jobs.errors import JobLockedError
from distaff.serving.batch_jobs.journal import Journal
from distaff.serving.batch_jobs.records import RUN, Record, note, parse_record


def record(number: int, *, good: bool = True) -> Record:
    return Record(number, f"id-{number}", "ab", number + 7, good, "" if good else "broken", 2, 3, b'{"n":%d}' % number)


def filled(path: Path, numbers: range = range(1, 6)) -> bytes:
    journal = Journal(path)
    journal.begin({"job": "this"})
    for number in numbers:
        journal.append(record(number, good=number != 3))
    journal.sync()
    journal.close()
    return path.read_bytes()


def test_a_record_comes_back() -> None:
    strange = record(9)._replace(custom_id="tab\t newline\n surrogate \ud800", row=b'{"text":"a\\tb"}')
    assert parse_record(strange.to_bytes()[:-1]) == strange
    assert b"\n" not in strange.to_bytes()[:-1]


def test_rows_come_in_the_order_of_the_input(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.begin({"job": "this"})
    for number in (5, 2, 9, 1):
        journal.append(record(number, good=number != 2))
    journal.append(record(5)._replace(row=b"another answer"))  # the first one counts
    journal.append(note(RUN, {"run": "a", "seconds": 1}))
    journal.append(note(RUN, {"run": "a", "seconds": 2}))
    assert list(journal.rows(good=True)) == [b'{"n":1}\n', b'{"n":5}\n', b'{"n":9}\n']
    assert list(journal.rows(good=False)) == [b'{"n":2}\n']
    index = journal.index
    assert index.done == 4 and dict(index.failed) == {"broken": 1} and index.prompt_tokens == 8
    assert index.header == {"job": "this"} and index.runs == {"a": {"run": "a", "seconds": 2}}
    assert 2 in index and 3 not in index and 100 not in index
    journal.remove()
    assert not (tmp_path / "j").exists()


def test_cut_at_any_byte_it_keeps_every_whole_record(tmp_path: Path) -> None:
    path = tmp_path / "j"
    whole = filled(path)
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        journal = Journal(path)
        kept = sum(end <= cut for end in ends)
        assert journal.index.done == max(0, kept - 1) and (journal.index.header is not None) == (kept > 0)
        assert journal.repaired == cut - max([0, *(end for end in ends if end <= cut)])
        if kept:
            journal.append(record(50))
            journal.sync()
            assert list(journal.rows(good=True))[-1] == b'{"n":50}\n'
        journal.close()
        assert path.read_bytes().count(b"\n") == kept + (kept > 0)


def test_a_record_that_rotted_is_answered_again(tmp_path: Path) -> None:
    path = tmp_path / "j"
    whole = bytearray(filled(path))
    whole[whole.index(b'{"n":2}') + 5] = ord("8")
    path.write_bytes(whole)
    journal = Journal(path)
    assert 2 not in journal.index and all(number in journal.index for number in (1, 3, 4, 5))
    assert journal.repaired == len(record(2).to_bytes())
    journal.append(record(2))
    assert list(journal.rows(good=True)) == [b'{"n":%d}\n' % number for number in (1, 2, 4, 5)]
    journal.close()


@pytest.mark.parametrize("partial", [0, 1, 17, len(record(6).to_bytes()) + 5])
def test_a_full_disk_leaves_whole_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partial: int) -> None:
    path = tmp_path / "j"
    whole = filled(path)
    write = os.pwrite

    def full(file: int, data: memoryview, offset: int) -> int:
        if partial and offset == len(whole):
            return write(file, data[:partial], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    journal = Journal(path)
    monkeypatch.setattr(module.os, "pwrite", full)
    journal.append(record(6))
    journal.append(record(7))
    with pytest.raises(OSError, match="No space left"):
        journal.sync()
    journal.close()
    assert path.read_bytes() == whole + (record(6).to_bytes() if partial > 20 else b"")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    first = Journal(tmp_path / "j")
    with pytest.raises(JobLockedError, match="another process works on this job"):
        Journal(tmp_path / "j")
    first.close()
    Journal(tmp_path / "j").close()


def test_an_end_that_was_not_synced_is_written_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SYNC_SECONDS", 0.0)
    journal = Journal(tmp_path / "j")
    journal.begin({})
    journal.append(record(1))
    assert b"id-1" in (tmp_path / "j").read_bytes()
    journal.close()
