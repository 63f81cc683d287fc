"""The words in which a metric is described."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..metrics import Histogram

type Labels = tuple[str, ...]
type Value = float | Histogram
type Read = Callable[[Any], Value | Mapping[Labels, Value]]
"""From a Front (see front/front.py): a value, or one for each combination of label values."""


@dataclass(frozen=True)
class Exported:
    """One metric that Prometheus reads.

    Attributes:
        name: without the `_total` that the exposition adds to counters.
        kind: of the three kinds that there are.
        doc: what it says, as it stands in the documentation.
        read: where the value comes from.
        labels: names of the labels that `read` gives values for.
        constant: labels with the same value for as long as the server runs, from a Front.
        bounds: upper bounds of a histogram's buckets.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    doc: str
    read: Read
    labels: Labels = ()
    constant: Callable[[Any], Mapping[str, str]] | None = None
    bounds: tuple[float, ...] = ()

    @property
    def exposed_name(self) -> str:
        """As it stands in a query."""
        return f"{self.name}_total" if self.kind == "counter" else self.name
