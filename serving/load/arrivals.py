"""When requests are sent: at moments of their own (open loop), whatever the server does meanwhile."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...backends.errors import InvalidParameterError


@dataclass(frozen=True)
class Pattern:
    """How moments are spread at a given rate.

    Attributes:
        shape: the gamma distribution's, of the gaps between two moments. 1 is a Poisson process; below 1 arrivals come
            in clusters (their coefficient of variation is 1 / sqrt(shape)), above more evenly; infinite is a metronome.
        burst: so many requests come at each moment at once.
    """

    shape: float = 1.0
    burst: int = 1

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """Reads "poisson", "even", "gamma:SHAPE" or "burst:N".

        Raises:
            InvalidParameterError: says what was expected.
        """
        found = re.fullmatch(r"(poisson|even)|gamma:(\d+(?:\.\d+)?)|burst:(\d+)", text)
        pattern = None
        if found is not None:
            name, shape, burst = found.groups()
            if name is not None:
                pattern = cls(1.0 if name == "poisson" else float("inf"))
            elif shape is not None:
                pattern = cls(float(shape))
            else:
                pattern = cls(1.0, int(burst))
        if pattern is None or not pattern.shape > 0 or pattern.burst < 1:
            raise InvalidParameterError("arrivals", text, "poisson, even, gamma:SHAPE (such as gamma:0.25) or burst:N")
        return pattern

    def moments(self, count: int, rate: float, seed: int) -> tuple[float, ...]:
        """`count` moments in seconds from the start, in order, `rate` requests a second in the mean.

        The first gap comes before the first request, so that the mean rate holds for few requests as well.
        """
        _check(rate)
        source = random.Random(seed)
        mean = self.burst / rate
        now, moments = 0.0, list[float]()
        while len(moments) < count:
            now += mean if self.shape == float("inf") else source.gammavariate(self.shape, mean / self.shape)
            moments += [now] * self.burst
        return tuple(moments[:count])


def scaled(moments: Sequence[float], rate: float) -> tuple[float, ...]:
    """The moments of a trace, stretched or pressed until they come at `rate` requests a second in the mean."""
    _check(rate)
    span = max(moments, default=0.0)
    if span <= 0:
        raise InvalidParameterError("rate", rate, "no rate: all requests of this trace come at the same moment")
    factor = len(moments) / rate / span
    return tuple(moment * factor for moment in moments)


def _check(rate: float) -> None:
    if not 0 < rate < float("inf"):
        raise InvalidParameterError("rate", rate, "requests a second, above 0")
