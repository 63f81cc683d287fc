"""How busy a front is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """At one moment.

    Attributes:
        waiting, running: calls without a slot, and with one.
        tokens_in_flight: prompt and longest answer of these, summed.
        pages_used, pages_total: of the KV cache, all groups together; prompts that are only remembered hold none.
        streams: calls whose engine work has not ended.
        max_batch: those that run at once at most.
    """

    waiting: int
    running: int
    tokens_in_flight: int
    pages_used: int
    pages_total: int
    streams: int
    max_batch: int

    @property
    def page_usage(self) -> float:
        """Pages that sequences hold of all, from 0 to 1."""
        return self.pages_used / max(1, self.pages_total)
