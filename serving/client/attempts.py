"""One call's tries: how much time is left, and whether another one is worth it."""

import time
from collections.abc import Callable

import grpc

from .errors import ServerError, error_of
from .retry import RetryPolicy


class Attempts:
    """Counts the tries of a call.

    Args:
        timeout: seconds for all tries together, None for any.
        target: as errors name it.
    """

    def __init__(
        self, policy: RetryPolicy, timeout: float | None, target: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._policy, self._target, self._clock = policy, target, clock
        self._end = None if timeout is None else clock() + timeout
        self._tries = 0
        self._lost = False

    def begin(self) -> float | None:
        """Begins a try; returns the seconds that it may take."""
        self._tries += 1
        return self._remaining()

    def error_of(self, failure: grpc.RpcError) -> ServerError:
        """What a failure is to the caller."""
        return error_of(failure, self._target)

    def wait_after(self, failure: grpc.RpcError) -> float:
        """Seconds to wait before the next try.

        Raises:
            ServerError: there is none.
        """
        error = self.error_of(failure)
        wait = self._policy.wait(error, self._tries, self._remaining(), lost=self._lost)
        if wait is None:
            raise error from failure
        self._lost |= error.is_lost
        return wait

    def _remaining(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - self._clock())
