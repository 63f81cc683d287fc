"""How long one request took, out of the moments at which its answer came; and many of them together."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from .percentiles import percentiles_ms


class Times(ABC):
    """Moments are in seconds, from any beginning."""

    @property
    @abstractmethod
    def start(self) -> float:
        """When it was sent."""

    @property
    @abstractmethod
    def moments(self) -> Sequence[float]:
        """At which tokens came, one or several."""

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """That came in all."""

    @property
    @abstractmethod
    def succeeded(self) -> bool:
        """Whether it came to its end."""

    @property
    def ttft(self) -> float:
        """Seconds from sending to the first token; infinite if none came."""
        return self.moments[0] - self.start if self.moments else math.inf

    @property
    def latency(self) -> float:
        """Seconds from sending to the last token; infinite if none came."""
        return self.moments[-1] - self.start if self.moments else math.inf

    @property
    def tpot(self) -> float:
        """Mean seconds for each token after the first; 0 if there is at most one."""
        return (self.latency - self.ttft) / (self.num_tokens - 1) if self.num_tokens > 1 and self.moments else 0.0

    @property
    def gaps(self) -> list[float]:
        """Seconds from each moment to the next."""
        return [after - before for before, after in pairwise(self.moments)]


def times_report(requests: Iterable[Times]) -> dict[str, Any]:
    """The times of requests that came to their ends, as JSON knows them."""
    came = [request for request in requests if request.moments]
    return {
        "ttft_ms": percentiles_ms([request.ttft for request in came]),
        "tpot_ms": percentiles_ms([request.tpot for request in came if request.num_tokens > 1]),
        "itl_ms": percentiles_ms([gap for request in came for gap in request.gaps]),
        "e2el_ms": percentiles_ms([request.latency for request in came]),
    }
