"""When waiting sequences may start: at any time, or only as a batch that then runs to its end."""

from collections.abc import Callable
from collections.abc import Sequence as Row
from typing import Literal, get_args

from .sequence import Sequence

Policy = Literal["continuous", "dynamic", "static"]
POLICIES: tuple[Policy, ...] = get_args(Policy)


class Gate:
    """Lets waiting sequences in.

    "continuous" lets in whoever comes. The others let in one batch when nothing runs, and nobody else until all of it
    has ended: "static" waits for max_batch sequences or `flush`, "dynamic" also no longer than `timeout` seconds
    after the oldest of them arrived. A batch is never empty.
    """

    def __init__(self, policy: Policy, max_batch: int, timeout: float, clock: Callable[[], float]) -> None:
        self._policy = policy
        self._max_batch = max_batch
        self._timeout = timeout
        self._clock = clock
        self._batch: set[Sequence] = set()
        self._flushed: set[Sequence] = set()

    def open(self, waiting: Row[Sequence]) -> None:
        """Forms the next batch if the last one has ended and there is reason not to wait any longer."""
        if self._policy != "continuous" and not self._batch and self.seconds(waiting) == 0:
            self._batch.update(waiting[: self._max_batch])
            self._flushed -= self._batch

    def admits(self, sequence: Sequence) -> bool:
        return self._policy == "continuous" or sequence in self._batch

    def flush(self, waiting: Row[Sequence]) -> None:
        """No more is coming: what waits now need not wait for company."""
        if self._policy != "continuous":
            self._flushed.update(waiting)

    def rejoin(self, sequences: Row[Sequence]) -> None:
        """These have been let in before and must start again."""
        if self._policy != "continuous":
            self._batch.update(sequences)

    def leave(self, sequence: Sequence) -> None:
        """A sequence has ended."""
        self._batch.discard(sequence)
        self._flushed.discard(sequence)

    def seconds(self, waiting: Row[Sequence]) -> float | None:
        """Until one of these may start, if nobody comes or ends: 0 for now, None for never."""
        if not waiting:
            return None
        if self._policy == "continuous":
            return 0.0
        if self._batch:
            return 0.0 if any(sequence in self._batch for sequence in waiting) else None
        if len(waiting) >= self._max_batch or any(sequence in self._flushed for sequence in waiting):
            return 0.0
        if self._policy == "static":
            return None
        oldest = min(sequence.arrival for sequence in waiting)
        return max(0.0, oldest + self._timeout - self._clock())
