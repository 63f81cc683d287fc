"""Cores for one process among several of a machine: those that no other has taken."""

import fcntl
import os
import tempfile
from pathlib import Path


class Cores:
    """Cores of this machine, until this process ends.

    Args:
        count: how many.
        folder: where processes of one user see what others have taken.

    Attributes:
        numbers: which; none where fewer than `count` are free.
    """

    def __init__(self, count: int, folder: Path | None = None) -> None:
        folder = folder or Path(tempfile.gettempdir()) / f"distaff-cores-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        self._locks: list[int] = []
        numbers: list[int] = []
        known = hasattr(os, "sched_getaffinity")  # elsewhere nobody can be kept to a core
        for number in sorted(os.sched_getaffinity(0)) if count and known else ():
            if len(numbers) == count:
                break
            lock = os.open(folder / f"{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            self._locks.append(lock)
            numbers.append(number)
        if len(numbers) < count:
            self.close()
            numbers = []
        self.numbers = tuple(numbers)

    def keep_to(self) -> None:
        """Keeps the calling thread, and those that it starts, to these cores, where there are any: XLA has as many
        threads as the thread that starts it may use cores."""
        if self.numbers:
            os.sched_setaffinity(0, self.numbers)

    def close(self) -> None:
        """Lets others have them."""
        for lock in self._locks:
            os.close(lock)
        self._locks.clear()
