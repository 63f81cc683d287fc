"""Files of which byte ranges are read, on this machine or elsewhere, and the count of what was read."""

import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from ..errors import CheckpointError, CorruptCheckpointError
from .remote import RemotePath
from .runs import Runs, coalesced, cut

MAX_WASTE: Final = 0.15
"""Most bytes that remote reads fetch beside those wanted, as a part of these."""

REQUEST_BYTES: Final = 8 * 2**20
"""Longest remote request; longer ranges are several, which a filesystem fetches at the same time."""

_HEAD_BYTES: Final = 2**18

type Location = Path | RemotePath
"""Where a file or folder of a checkpoint is."""


@dataclass
class ReadCount:
    """What was read so far, headers and small files aside.

    Args:
        wanted: bytes that were asked for.
        read: bytes that were read for them.
        requests: how many reads that took.
    """

    wanted: int = 0
    read: int = 0
    requests: int = 0

    def clear(self) -> None:
        """Count anew."""
        self.wanted = self.read = self.requests = 0

    @property
    def waste(self) -> float:
        """Unwanted bytes as a part of the wanted ones."""
        return self.read / self.wanted - 1 if self.wanted else 0.0


@runtime_checkable
class ByteFile(Protocol):
    """A file that is read in ranges."""

    @property
    def size(self) -> int:
        """Bytes of the file when it was opened."""
        ...

    def read(self, runs: Runs) -> UInt8[np.ndarray, "bytes"]:
        """The bytes of all runs, one behind the other.

        Raises:
            CheckpointError, CorruptCheckpointError: the file cannot be read, or has become shorter.
        """
        ...


class HeadOfFile:
    """The bytes of a file as they are sliced, fetched a piece at a time from its beginning: for headers whose length
    shows only as they are read."""

    def __init__(self, file: ByteFile) -> None:
        self._file = file
        self._held = bytearray()

    def __len__(self) -> int:
        return self._file.size

    def __getitem__(self, where: slice) -> bytes:
        start, stop, _ = where.indices(len(self))
        while len(self._held) < stop:
            more = min(max(_HEAD_BYTES, len(self._held)), len(self) - len(self._held))  # doubles what is held
            self._held += self._file.read(Runs(len(self._held), more)).tobytes()
        return bytes(self._held[start:stop])


class LocalFile:
    """A file of this machine. Exactly the ranges asked for are read, without a memory map: a map reads whole pages, and
    a file that shrinks under it ends the process."""

    def __init__(self, path: Path, count: ReadCount) -> None:
        self.path = path
        self._count = count
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
            self._size = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
        weakref.finalize(self, os.close, self._descriptor)

    @property
    def size(self) -> int:
        return self._size

    def read(self, runs: Runs) -> UInt8[np.ndarray, "bytes"]:
        made = np.empty(runs.nbytes, np.uint8)
        view = memoryview(made)
        for i, start in enumerate(runs.starts().tolist() if runs.length else ()):
            self._fill(view[i * runs.length : (i + 1) * runs.length], start)
        self._count.wanted += runs.nbytes
        return made

    def _fill(self, target: memoryview, at: int) -> None:
        while target.nbytes:
            try:
                found = os.preadv(self._descriptor, [target], at)
            except OSError as error:
                raise CheckpointError(f"{self.path}: cannot be read ({error.strerror})") from error
            if found == 0:
                raise CorruptCheckpointError(
                    f"{self.path}: found the end at byte {at}, expected {self.size} bytes as when it was opened; the "
                    "file has changed, load again when it is complete"
                )
            self._count.read += found
            self._count.requests += 1
            target, at = target[found:], at + found


class RemoteFile:
    """A file of an fsspec filesystem. Neighbouring ranges become one request while no more than MAX_WASTE of what is
    wanted is read over."""

    def __init__(self, path: RemotePath, count: ReadCount) -> None:
        self.path = path
        self._count = count
        self._size = path.stat().st_size

    @property
    def size(self) -> int:
        return self._size

    def read(self, runs: Runs) -> UInt8[np.ndarray, "bytes"]:
        made = np.empty(runs.nbytes, np.uint8)
        if not runs.nbytes:
            return made
        merged = coalesced(runs, MAX_WASTE)
        requests = list(cut(merged, REQUEST_BYTES))
        parts = self.path.read_ranges(requests)
        for (start, stop), part in zip(requests, parts, strict=True):
            if len(part) != stop - start:
                raise CorruptCheckpointError(
                    f"{self.path}: found {len(part)} bytes from byte {start}, expected {stop - start}; the file has "
                    "changed, load again when it is complete"
                )
        held = np.frombuffer(b"".join(parts), np.uint8)
        # Where each run lies in what came: all ranges before it, and its distance from the start of its own.
        firsts = np.array([start for start, _ in merged], np.int64)
        before = np.cumsum([0, *(stop - start for start, stop in merged)])[:-1]
        starts = runs.starts()
        owner = np.searchsorted(firsts, starts, side="right") - 1
        at = starts - firsts[owner] + before[owner]
        rows = made.reshape(-1, runs.length)
        np.take(np.lib.stride_tricks.sliding_window_view(held, runs.length), at, axis=0, out=rows)
        self._count.wanted += runs.nbytes
        self._count.read += len(held)
        self._count.requests += len(requests)
        return made


def open_bytes(path: Location, count: ReadCount) -> ByteFile:
    """A file for reading in ranges.

    Raises:
        CheckpointError: it cannot be read.
    """
    return RemoteFile(path, count) if isinstance(path, RemotePath) else LocalFile(path, count)
