"""The words in which a metric is described."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ..front import Front
from ..metrics import Histogram

type Labels = tuple[str, ...]
type Value = float | Histogram
type Read = Callable[[Front], Value | Mapping[Labels, Value]]
"""A value, or one for each combination of label values."""
type Constant = Callable[[Front], Mapping[str, str]]


@dataclass(frozen=True)
class Exported:
    """One metric that Prometheus reads.

    Attributes:
        name: without the `_total` that the exposition adds to counters.
        kind: of the three kinds that there are.
        doc: what it says, as it stands in the documentation.
        read: where the value comes from.
        labels: names of the labels that `read` gives values for.
        constant: labels with the same value for as long as the server runs.
        bounds: upper bounds of a histogram's buckets.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    doc: str
    read: Read
    labels: Labels = ()
    constant: Constant | None = None
    bounds: tuple[float, ...] = ()

    @property
    def exposed_name(self) -> str:
        """As it stands in a query."""
        return f"{self.name}_total" if self.kind == "counter" else self.name


@dataclass(frozen=True)
class Family:
    """Makes metrics whose names begin alike.

    Attributes:
        prefix: of their names.
        constant: as Exported has it, of each.
    """

    prefix: str
    constant: Constant | None = None

    def gauge(self, name: str, doc: str, read: Read, *labels: str) -> Exported:
        return Exported(self.prefix + name, "gauge", doc, read, labels, self.constant)

    def counter(self, name: str, doc: str, read: Read, *labels: str) -> Exported:
        return Exported(self.prefix + name, "counter", doc, read, labels, self.constant)

    def histogram(self, name: str, doc: str, bounds: tuple[float, ...], read: Read, *labels: str) -> Exported:
        return Exported(self.prefix + name, "histogram", doc, read, labels, self.constant, bounds)
