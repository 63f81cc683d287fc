"""What happened to one request, and when."""

from dataclasses import dataclass, field

from ..times import Times


@dataclass
class Record(Times):
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
    def start(self) -> float:
        return self.sent

    @property
    def moments(self) -> list[float]:
        return [moment for moment, _ in self.arrivals]

    @property
    def num_tokens(self) -> int:
        """The server's own count, or else that of the messages."""
        return self.output_tokens or sum(count for _, count in self.arrivals)
