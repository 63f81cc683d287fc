"""How long steps take, and how many decode steps a call may hold for that."""

from .metrics import Metrics
from .runner import Ticket


class Pace:
    """Times steps as they are read.

    Args:
        metrics: where they are counted.
        max_decode_steps: most decode steps in a call.
        target_burst: seconds that a call of several decode steps may take, since its tokens come out together.

    Attributes:
        decode_steps: how many a call may hold, by how long the last one took.
    """

    def __init__(self, metrics: Metrics, max_decode_steps: int, target_burst: float) -> None:
        self.decode_steps = max_decode_steps
        self._metrics = metrics
        self._max_decode_steps = max_decode_steps
        self._target_burst = target_burst
        self._device_free = 0.0

    def read(self, ticket: Ticket, *, host: float, wait: float, now: float) -> None:
        """A step has come back at `now`, after `wait` seconds of waiting and `host` seconds of the host's own work."""
        plan = ticket.plan
        # The device begins with a step when it has it, and when it is done with the one before.
        seconds = now - max(ticket.dispatched, self._device_free)
        self._device_free = now
        self._metrics.ran(plan, host=host, device=seconds, wait=wait)
        if plan.bucket.kind == "decode":
            affordable = int(self._target_burst * plan.num_steps / max(seconds, 1e-9))
            self.decode_steps = min(max(affordable, 1), self._max_decode_steps)
