"""The journal on an object store, where nothing can be appended to: numbered segments that never change."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from .errors import OutputError
from .index import Index
from .lease import LEASE_SECONDS, Lease, create
from .records import JOB, Record, note, parse_record, row_offset

SEGMENT_SECONDS = 30.0
"""Most work that a machine which vanishes takes with it."""
_SEGMENT_BYTES = 16 * 2**20


class Segments:
    """Records in objects `segment-LEASE-NUMBER` below a folder, and all of them in a temporary file here.

    The file is for reading rows again at the end; when this machine is lost, the next one makes it anew of the
    segments.

    Attributes:
        index: what the segments hold.
        repaired: bytes that are not whole.

    Args:
        fs: an fsspec file system.
        folder: where they lie.
        check: called with each record that is found; what it raises ends the opening.

    Raises:
        JobLockedError: another process works on the job.
    """

    def __init__(
        self,
        fs: Any,
        folder: str,
        check: Callable[[Record], None] = lambda record: None,
        *,
        lease_seconds: float = LEASE_SECONDS,
        segment_seconds: float = SEGMENT_SECONDS,
    ) -> None:
        self._fs, self._folder = fs, folder
        self._segment_seconds = segment_seconds
        self.index = Index()
        self.repaired = 0
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._count = 0
        self._started = time.monotonic()
        self._file = tempfile.TemporaryFile(prefix="distaff-batch-")  # noqa: SIM115
        self._lease = Lease(fs, folder, seconds=lease_seconds)
        self._end = 0
        try:
            for path in self._paths():
                for line in fs.cat_file(path).splitlines(keepends=True):
                    self._take(line, check)
        except BaseException:
            self.close()
            raise

    def begin(self, header: dict[str, Any]) -> None:
        """Says which job they belong to. Whatever was there is gone."""
        for path in self._paths():
            self._fs.rm_file(path)
        self.index, self._end = Index(), 0
        self._file.truncate(0)
        self.append(note(JOB, header))
        self.sync()

    def append(self, record: Record) -> None:
        """Adds a record; it is on the store within SEGMENT_SECONDS, or after `sync`.

        Raises:
            OSError: the store or the disk here cannot be written.
        """
        data = record.to_bytes()
        self._spool(record, data)
        self._pending.append(data)
        self._pending_bytes += len(data)
        self.tick()

    def tick(self) -> None:
        """To be called now and then while nothing comes."""
        waits = self._pending and time.monotonic() - self._started > self._segment_seconds
        if waits or self._pending_bytes > _SEGMENT_BYTES:
            self.sync()

    def sync(self) -> None:
        """Puts what is pending onto the store."""
        if not self._pending:
            return
        self._lease.check()
        self._count += 1
        path = f"{self._folder}/segment-{self._lease.number:06}-{self._count:06}"
        if not create(self._fs, path, b"".join(self._pending)):
            raise OutputError(f"{path}: is there already, though its lease is ours; is a copy of this job running?")
        self._pending, self._pending_bytes = [], 0
        self._started = time.monotonic()

    def rows(self, *, good: bool) -> Iterator[bytes]:
        """The rows of the output, or of the errors file, in the order of the input, each with its line end."""
        with os.fdopen(os.dup(self._file.fileno()), "rb", buffering=2**16) as file:
            for offset in self.index.offsets(good=good):
                file.seek(offset)
                line = file.readline()
                yield line[row_offset(line) :]

    def check(self) -> None:
        """
        Raises:
            JobLockedError: another process has taken the job over.
        """
        self._lease.check()

    def remove(self) -> None:
        """Deletes them, at the end of the job."""
        for path in self._paths():
            self._fs.rm_file(path)
        self._lease.end()  # or it would make its lease anew
        for path in self._fs.glob(f"{self._folder}/lease-*"):
            self._fs.rm_file(path)
        self._file.close()
        with contextlib.suppress(OSError):
            self._fs.rmdir(self._folder)  # where folders are more than parts of names

    def close(self) -> None:
        """Lets go of the lease; what is pending is lost. Closing again does nothing."""
        if not self._file.closed:
            self._file.close()
            with contextlib.suppress(OSError):  # a store that is gone; the next one waits until the lease is lost
                self._lease.release()

    def _paths(self) -> list[str]:
        self._fs.invalidate_cache()
        return sorted(self._fs.glob(f"{self._folder}/segment-*"))

    def _take(self, line: bytes, check: Callable[[Record], None]) -> None:
        record = parse_record(line[:-1]) if line.endswith(b"\n") else None
        if record is None:
            self.repaired += len(line)
            return
        check(record)
        self._spool(record, line)

    def _spool(self, record: Record, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.pwrite(self._file.fileno(), view, self._end + len(data) - len(view)) :]
        self.index.add(record, self._end)
        self._end += len(data)
