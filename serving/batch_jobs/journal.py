"""The journal on a disk: records in the order in which they were answered, appended and never changed."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .errors import JobLockedError
from .index import Index
from .records import JOB, Record, note, parse_record, row_offset

SYNC_SECONDS = 1.0
"""Longest time that an answer waits until it is on the disk."""
_BUFFER = 2**18


class Journal:
    """A file that one process writes; others are kept out by a lock that ends with the process.

    Attributes:
        index: what it holds.
        repaired: bytes that were cut off or are not whole, found when it was opened.

    Args:
        path: made if it is not there.
        check: called with each record that is found; what it raises ends the opening.

    Raises:
        JobLockedError: another process writes it.
        OSError: it cannot be opened or read.
    """

    def __init__(self, path: Path, check: Callable[[Record], None] = lambda record: None) -> None:
        self.path = path
        self.index = Index()
        self.repaired = 0
        self._file = open_locked(path, f"{path}: another process works on this job; wait for it, or stop it")
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._synced = time.monotonic()
        try:
            self._end = self._read(check)
        except BaseException:
            os.close(self._file)
            raise

    def begin(self, header: dict[str, Any]) -> None:
        """Says which job it belongs to. Whatever it held is gone."""
        os.ftruncate(self._file, 0)
        self.index, self._end = Index(), 0
        self.append(note(JOB, header))
        self.sync()
        sync_folder(self.path.parent)

    def append(self, record: Record) -> None:
        """Adds a record; it is on the disk within SYNC_SECONDS, or after `sync`.

        Raises:
            OSError: the disk is full or gone; the journal holds the whole records that it had room for.
        """
        data = record.to_bytes()
        self.index.add(record, self._end + self._pending_bytes)
        self._pending.append(data)
        self._pending_bytes += len(data)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()
        elif self._pending_bytes > _BUFFER:
            self._flush()

    def tick(self) -> None:
        """To be called now and then while nothing comes."""
        if self._pending:
            self.sync()

    def sync(self) -> None:
        """Waits until everything is on the disk."""
        self._flush()
        os.fdatasync(self._file)
        self._synced = time.monotonic()

    def rows(self, *, good: bool) -> Iterator[bytes]:
        """The rows of the output, or of the errors file, in the order of the input, each with its line end."""
        self._flush()
        with self.path.open("rb", buffering=2**16) as file:
            for offset in self.index.offsets(good=good):
                file.seek(offset)
                line = file.readline()
                yield line[row_offset(line) :]

    def remove(self) -> None:
        """Deletes it, at the end of the job."""
        self.path.unlink()
        self.close()

    def close(self) -> None:
        """Lets go of the lock; what was not written yet is lost. Closing again does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _read(self, check: Callable[[Record], None]) -> int:
        """Reads what is there, cuts a torn end off, and returns where the next record goes."""
        end = 0
        with self.path.open("rb", buffering=2**20) as file:
            for line in file:
                if not line.endswith(b"\n"):
                    self.repaired += len(line)
                    os.ftruncate(self._file, end)
                    break
                record = parse_record(line[:-1])
                if record is None:
                    self.repaired += len(line)
                else:
                    check(record)
                    self.index.add(record, end)
                end += len(line)
        return end

    def _flush(self) -> None:
        if not self._pending:
            return
        data = b"".join(self._pending)
        self._pending, self._pending_bytes = [], 0
        self._write(data)

    def _write(self, data: bytes) -> None:
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._file, memoryview(data)[written:], self._end + written)
        except OSError:
            # What fits is kept, down to its last whole record.
            self._end += data.rfind(b"\n", 0, written) + 1
            os.ftruncate(self._file, self._end)
            raise
        self._end += len(data)


def open_locked(path: Path, held: str) -> int:
    """Opens a file that only this process has, until it is closed.

    Raises:
        JobLockedError: with what is `held` as its message.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(file)
            raise JobLockedError(held) from error
        if os.fstat(file).st_nlink:
            return file
        os.close(file)  # its owner deleted it between the two calls


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder last."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
