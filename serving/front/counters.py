"""What a front counts, besides the engine's metrics. Written in the event loop alone."""

from collections import Counter
from typing import Any


class FrontCounters:
    """
    Attributes:
        opened: calls that were let in.
        refused: those that were not, by Status.kind.
        ended: those that ended, by Reason ("error" for a failure; "done" for scores and embeddings).
        stalled: streams that ended because nobody read them.
        tokens: that reached streams.
        joined: of these, those that waited for their reader together with others.
        wakeups: of the loop by the engine; `items` came with them.
    """

    def __init__(self) -> None:
        self.opened = 0
        self.refused: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.stalled = 0
        self.tokens = 0
        self.joined = 0
        self.wakeups = 0
        self.items = 0

    def snapshot(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}
