"""How much a front takes in, from all and from one tenant."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType

from ...backends.errors import InvalidParameterError


@dataclass(frozen=True)
class TenantLimits:
    """Of one tenant, or of all together; None is no limit.

    Attributes:
        max_queued: calls that wait for a slot.
        max_streams: calls that wait or run.
        max_tokens_in_flight: prompt and longest answer of these, summed.
    """

    max_queued: int | None = None
    max_streams: int | None = None
    max_tokens_in_flight: int | None = None

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value is not None and value < 1:
                raise InvalidParameterError(limit.name, value, "a whole number from 1, or None")


@dataclass(frozen=True)
class FrontLimits:
    """
    Attributes:
        max_queued, max_streams, max_tokens_in_flight: as TenantLimits, of everybody together.
        per_tenant: of each tenant that `tenants` does not name.
        tenants: by name.
        max_prompt_bytes: of a text, or of all the messages of a conversation.
        max_priority: a call's priority may be this far from 0 at most, so that nobody waits for ever.
        max_buffered_events: of a stream; what comes beyond is joined, so that under more load than messages can be sent
            for, each has more tokens instead of coming later and later.
        stall_seconds: after which a stream that has something, and is not read, ends.
        hang_seconds: in which the device must come back from a step whose requests were ended because the server goes
            down; one that does not hangs, and is not waited for.
        retry_after: seconds that a refused caller is told to wait, where nothing better is known.
    """

    max_queued: int | None = 1024
    max_streams: int | None = 2048
    max_tokens_in_flight: int | None = None
    per_tenant: TenantLimits = TenantLimits()
    tenants: Mapping[str, TenantLimits] = field(default_factory=lambda: MappingProxyType({}))
    max_prompt_bytes: int = 16 * 2**20
    max_priority: int = 100
    max_buffered_events: int = 16
    stall_seconds: float = 30.0
    hang_seconds: float = 20.0
    retry_after: float = 1.0

    def __post_init__(self) -> None:
        _ = self.total
        for name in ("max_prompt_bytes", "max_buffered_events", "stall_seconds", "hang_seconds", "retry_after"):
            if not getattr(self, name) > 0:
                raise InvalidParameterError(name, getattr(self, name), "a number above 0")

    @property
    def total(self) -> TenantLimits:
        """Those of everybody together."""
        return TenantLimits(self.max_queued, self.max_streams, self.max_tokens_in_flight)

    def of(self, tenant: str) -> TenantLimits:
        """Those of one tenant."""
        return self.tenants.get(tenant, self.per_tenant)
