"""Who may write on an object store, which has no locks: numbered leases that can be made once, and are kept alive."""

import json
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from .errors import JobLockedError

LEASE_SECONDS = 60.0
"""A lease that has not changed for so long has lost its holder."""
_BEATS = 6
"""Times that a holder shows in LEASE_SECONDS that it lives."""
_POLLS = 12
_RELEASED = b"released"


class Lease:
    """The right to write below a path, until another one has a lease of a higher number.

    A thread shows that its holder lives, whatever that does: loading a model or writing a large output may take longer
    than a lease lasts. Clocks of machines are not compared: a lease counts as lost when its content stays the same for
    `seconds` as they pass here.

    Attributes:
        number: it begins with 1 and grows with each holder.

    Args:
        fs: an fsspec file system.
        folder: where leases lie.
        seconds: as LEASE_SECONDS.

    Raises:
        JobLockedError: another process holds it.
    """

    def __init__(
        self, fs: Any, folder: str, *, seconds: float = LEASE_SECONDS, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._fs, self._folder, self._seconds = fs, folder, seconds
        self._token = secrets.token_hex(8)
        self._beats = 0
        last = self._last()
        if last:
            self._wait_for(last, sleep)
        self.number = last + 1
        if not create(fs, self._path(self.number), self._content()):
            raise JobLockedError(f"{folder}: another process has just taken this job over")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, name="distaff-batch-lease", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """Shows that its holder lives.

        Raises:
            JobLockedError: another process has taken the job over.
        """
        self.check()
        self._beats += 1
        self._fs.pipe_file(self._path(self.number), self._content())

    def check(self) -> None:
        """
        Raises:
            JobLockedError: another process has taken the job over.
        """
        if not self._held():
            raise JobLockedError(f"{self._folder}: another process has taken this job over, this one stops")

    def end(self) -> None:
        """Shows no more that its holder lives."""
        self._ended.set()
        self._thread.join()

    def release(self) -> None:
        """Lets the next one begin at once."""
        self.end()
        if self._held():
            self._fs.pipe_file(self._path(self.number), _RELEASED)

    def _live(self) -> None:
        while not self._ended.wait(self._seconds / _BEATS):
            try:
                self.beat()
            except JobLockedError:
                return  # whoever writes next hears of it
            except Exception:  # the store is away: in time again with a later beat, or the lease is lost
                pass

    def _held(self) -> bool:
        """Whether it is still ours: one who took the job over may have ended it since, and deleted all leases, and
        the next job's begin with the same numbers."""
        self._fs.invalidate_cache()
        return not self._fs.exists(self._path(self.number + 1)) and self._token.encode() in self._read(self.number)

    def _wait_for(self, number: int, sleep: Callable[[float], None]) -> None:
        """Returns once the holder of a lease has let it go, or has not touched it for long enough."""
        before = self._read(number)
        for _ in range(_POLLS):
            if before == _RELEASED:
                return
            sleep(self._seconds / _POLLS)
            now = self._read(number)
            if now != before and now != _RELEASED:
                raise JobLockedError(f"{self._folder}: another process works on this job; wait for it, or stop it")
            before = now

    def _read(self, number: int) -> bytes:
        """What a lease says; one that was deleted at the end of a job is as good as released."""
        try:
            return bytes(self._fs.cat_file(self._path(number)))
        except FileNotFoundError:
            return _RELEASED

    def _last(self) -> int:
        self._fs.invalidate_cache()
        found = self._fs.glob(f"{self._folder}/lease-*")
        return max((int(path.rsplit("-", 1)[1]) for path in found), default=0)

    def _path(self, number: int) -> str:
        return f"{self._folder}/lease-{number:06}"

    def _content(self) -> bytes:
        return json.dumps({"holder": self._token, "beats": self._beats}).encode()


def create(fs: Any, path: str, data: bytes) -> bool:
    """Writes an object that is not there yet, by a conditional write; whether that was us.

    `data` must be its writer's own: what lies there tells whether a write that failed on the way back has happened.
    """
    try:
        fs.pipe_file(path, data, mode="create")
    except Exception:  # each store has an error of its own for this
        fs.invalidate_cache()
        if not fs.exists(path):
            raise
        return bool(fs.cat_file(path) == data)
    return True
