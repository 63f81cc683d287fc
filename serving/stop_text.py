"""Ends a text at the first stop text, and holds back whatever might still become one."""

from collections.abc import Sequence


class StopText:
    """Filters a stream of text; nothing that belongs to a stop text passes.

    Attributes:
        found: the stop text that came up, None so far.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def add(self, text: str, *, counts: bool = True) -> str:
        """Takes new text, returns what is now certain. After a stop text was found, nothing is.

        A stop text that is complete with this piece is passed over where the piece does not count.
        """
        if self.found is not None or not self._stops:
            return text if self.found is None else ""
        before, self._held = len(self._held), self._held + text
        if counts:
            # One that ends in what was held back was passed over.
            starts = [(self._held.find(stop, max(0, before - len(stop) + 1)), stop) for stop in self._stops]
            start, found = min(((start, stop) for start, stop in starts if start >= 0), default=(0, None))
            if found is not None:
                self.found = found
                certain, self._held = self._held[:start], ""
                return certain
        keep = max(self._overlap(stop) for stop in self._stops)
        cut = len(self._held) - keep
        certain, self._held = self._held[:cut], self._held[cut:]
        return certain

    def finish(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, stop: str) -> int:
        """Longest end of the held text that begins a stop text."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
