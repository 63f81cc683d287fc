"""Times of requests made up by hand."""

from collections.abc import Sequence

from distaff.serving.times import Times


class Made(Times):
    """A request whose tokens came at these moments."""

    def __init__(self, *moments: float, start: float = 0.0, tokens: int | None = None, succeeded: bool = True) -> None:
        self._start, self._moments, self._succeeded = start, moments, succeeded
        self._tokens = len(moments) if tokens is None else tokens

    @property
    def start(self) -> float:
        return self._start

    @property
    def moments(self) -> Sequence[float]:
        return self._moments

    @property
    def num_tokens(self) -> int:
        return self._tokens

    @property
    def succeeded(self) -> bool:
        return self._succeeded
