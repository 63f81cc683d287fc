"""Who gets in: places are taken when a call comes, and given back when the engine has let go of it."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from .errors import OverloadedError
from .limits import FrontLimits, TenantLimits

_LONGEST_RETRY = 30.0


@dataclass
class Occupancy:
    """What a tenant, or everybody together, has under way."""

    queued: int = 0
    streams: int = 0
    tokens: int = 0


class _Rate:
    """Calls that ended a second, of late."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ends: deque[float] = deque(maxlen=64)

    def note(self) -> None:
        self._ends.append(self._clock())

    @property
    def value(self) -> float:
        """0 where none has ended yet."""
        return len(self._ends) / max(self._clock() - self._ends[0], 1e-3) if self._ends else 0.0


class Place:
    """One call's share of the limits. All of it happens in the event loop."""

    def __init__(self, admission: "Admission", tenant: str) -> None:
        self._admission = admission
        self._tenant = tenant
        self._queued = self._held = True
        self._tokens = 0

    def take_tokens(self, count: int) -> None:
        """
        Raises:
            OverloadedError: so many more are too many.
        """
        self._admission.check_tokens(self._tenant, count)
        self._tokens = count
        self._change(tokens=count)

    def admitted(self) -> None:
        """It waits no longer."""
        if self._queued:
            self._queued = False
            self._change(queued=-1)

    def leave(self) -> None:
        """It has ended. Leaving again does nothing."""
        if self._held:
            self.admitted()
            self._held = False
            self._change(streams=-1, tokens=-self._tokens)
            self._admission.left(self._tenant)

    def _change(self, *, queued: int = 0, streams: int = 0, tokens: int = 0) -> None:
        for one in self._admission.of(self._tenant):
            one.queued += queued
            one.streams += streams
            one.tokens += tokens


class Admission:
    """Counts places and refuses those beyond the limits.

    Attributes:
        total: what everybody has under way.
        tenants: the same for each tenant that has something.
        limits: may be replaced at any time.
    """

    def __init__(self, limits: FrontLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = Occupancy()
        self.tenants: dict[str, Occupancy] = {}
        self.limits = limits
        self._rate = _Rate(clock)

    def enter(self, tenant: str) -> Place:
        """A place in the queue.

        Raises:
            OverloadedError: there is none; the message says whose limit it is.
        """
        for one, limits, whose in self._both(tenant):
            self._check("waiting calls", one.queued + 1, limits.max_queued, whose)
            self._check("calls under way", one.streams + 1, limits.max_streams, whose)
        for one in self.of(tenant):
            one.queued += 1
            one.streams += 1
        return Place(self, tenant)

    def check_tokens(self, tenant: str, count: int) -> None:
        """Raises OverloadedError where `count` tokens more are too many; a call that is alone is never refused."""
        for one, limits, whose in self._both(tenant):
            if one.tokens:
                self._check("tokens in flight", one.tokens + count, limits.max_tokens_in_flight, whose)

    def of(self, tenant: str) -> tuple[Occupancy, Occupancy]:
        return self.total, self.tenants.setdefault(tenant, Occupancy())

    def left(self, tenant: str) -> None:
        """A call of this tenant has ended."""
        self._rate.note()
        if not self.tenants[tenant].streams:
            del self.tenants[tenant]

    def retry_after(self) -> float:
        """Seconds until a place is likely to be free: what waits, by how fast calls end."""
        if self._rate.value <= 0:
            return self.limits.retry_after
        seconds = (self.total.queued + 1) / self._rate.value
        return min(max(seconds, 0.1, self.limits.retry_after / 10), _LONGEST_RETRY)

    def _both(self, tenant: str) -> tuple[tuple[Occupancy, TenantLimits, str], ...]:
        own = self.tenants.get(tenant) or Occupancy()
        return (self.total, self.limits.total, "the server"), (own, self.limits.of(tenant), "this client")

    def _check(self, what: str, count: int, limit: int | None, whose: str) -> None:
        if limit is not None and count > limit:
            raise OverloadedError(f"{whose} has {limit} {what}, which is the limit: try again", self.retry_after())
