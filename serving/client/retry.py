"""Which failures are worth another try, and when."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from ...backends.errors import InvalidParameterError
from .errors import DuplicateRequestError, ServerError


@dataclass(frozen=True)
class RetryPolicy:
    """How often a call is tried, and how long to wait between two tries.

    Only what has brought nothing yet is tried again: a server that cannot be reached or is shutting down, and one that
    is full and says when to come back. Once an event of an answer has come, its failure is the caller's to judge.

    Attributes:
        attempts: tries in all; 1 never tries again.
        first: seconds before the second try; each further wait is twice as long.
        longest: seconds that no wait exceeds. A server that asks for a longer one is not waited for.
        random: draws from [0, 1), so that clients that were turned away together do not come back together.
    """

    attempts: int = 4
    first: float = 0.2
    longest: float = 10.0
    random: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise InvalidParameterError("attempts", self.attempts, "at least 1")
        if not 0 <= self.first <= self.longest < float("inf"):
            given = f"{self.first} and {self.longest}"
            raise InvalidParameterError("first and longest", given, "seconds with 0 <= first <= longest")

    def wait(self, error: ServerError, tries: int, remaining: float | None, *, lost: bool = False) -> float | None:
        """Seconds to wait after the failure of the last of `tries` tries, None to give up.

        Args:
            remaining: seconds left of the caller's time, None for any.
            lost: an earlier try may have reached the server, which may not know yet that nobody waits for its answer:
                a request by this name that runs there is probably our own.
        """
        ours = lost and isinstance(error, DuplicateRequestError)
        if not (error.is_passing or ours) or tries >= self.attempts:
            return None
        least = error.retry_after or 0.0
        backoff = min(self.first * 2 ** (tries - 1), self.longest)
        seconds = min(max(least, backoff) * (1 + 0.25 * self.random()), self.longest)
        if least > self.longest or (remaining is not None and seconds >= remaining):
            return None
        return seconds
