"""Which requests were answered in time to be worth something."""

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass

from ..backends.errors import InvalidParameterError
from .percentiles import rate_per_s
from .times import Times


@dataclass(frozen=True)
class Goodput:
    """Limits in milliseconds that a request has to keep to be worth something; None asks for nothing.

    Attributes:
        ttft: until its first token.
        tpot: for each of its tokens after the first, in the mean.
        e2el: until its last token.
    """

    ttft: float | None = None
    tpot: float | None = None
    e2el: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Goodput":
        """Reads "ttft:500,tpot:50,e2el:10000" or some of these.

        Raises:
            InvalidParameterError: says what was expected.
        """
        limits: dict[str, float] = {}
        for part in text.split(","):
            name, _, number = part.strip().partition(":")
            try:
                value = float(number)
            except ValueError:
                value = math.nan
            if name not in ("ttft", "tpot", "e2el") or name in limits or not 0 < value < math.inf:
                raise InvalidParameterError(
                    "goodput", text, "ttft:MS,tpot:MS,e2el:MS or some of these, in milliseconds"
                )
            limits[name] = value
        return cls(**limits)

    def keeps(self, times: Times) -> bool:
        """Whether a request came to its end, within these limits. One that failed or was aborted does not."""
        return times.succeeded and all(
            limit is None or seconds * 1e3 <= limit
            for limit, seconds in ((self.ttft, times.ttft), (self.tpot, times.tpot), (self.e2el, times.latency))
        )

    def report(self, requests: Collection[Times], seconds: float) -> dict[str, float | None]:
        """The limits, and how many requests of a run of so many seconds kept them."""
        kept = sum(map(self.keeps, requests))
        share = kept / len(requests) if requests else 0.0
        return {**self.to_dict(), "requests_per_s": rate_per_s(kept, seconds), "share": share}

    def to_dict(self) -> dict[str, float | None]:
        """The limits as reports state them."""
        return {f"{name}_ms": limit for name, limit in asdict(self).items()}
