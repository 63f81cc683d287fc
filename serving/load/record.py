"""What happened to one request, and when."""

import math
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass
class Record:
    """Moments in seconds from the start of the run.

    Attributes:
        due: when it should have been sent; equal to `sent` in a closed loop.
        sent: when it was handed to the transport.
        arrivals: (moment, tokens) of each message that brought tokens.
        ended: when the answer was complete or the failure known.
        prompt_tokens, cached_tokens, output_tokens: as the server counted them at the end, 0 where it did not say.
        error: the status or the reason of a failure, None for a request that came to its end.
    """

    due: float
    sent: float = 0.0
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    ended: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None

    @property
    def succeeded(self) -> bool:
        return self.error is None and bool(self.arrivals)

    @property
    def tokens(self) -> int:
        """Tokens that came: the server's own count, or else those of the messages."""
        return self.output_tokens or sum(count for _, count in self.arrivals)

    @property
    def ttft(self) -> float:
        """Seconds from sending to the first token; infinite if none came."""
        return self.arrivals[0][0] - self.sent if self.arrivals else math.inf

    @property
    def latency(self) -> float:
        """Seconds from sending to the last token; infinite if none came."""
        return self.arrivals[-1][0] - self.sent if self.arrivals else math.inf

    @property
    def tpot(self) -> float:
        """Mean seconds for each token after the first; 0 if there is at most one."""
        return (self.latency - self.ttft) / (self.tokens - 1) if self.tokens > 1 and self.arrivals else 0.0

    @property
    def gaps(self) -> list[float]:
        """Seconds from each message with tokens to the next."""
        moments = [moment for moment, _ in self.arrivals]
        return [after - before for before, after in pairwise(moments)]
