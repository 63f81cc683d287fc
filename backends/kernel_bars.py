"""What each kernel must reach, read from kernel_bars.yaml."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

Shape = Mapping[str, int | str]


@dataclass(frozen=True)
class Bar:
    """A limit on one figure of some kernels.

    Args:
        text: the bar in the words of docs/kernels.md.
        kernels: names of kernels; "*" is all of ours but the whole step.
        figure: which figure is limited.
        limit: the most that the figure may be.
        strict: it must stay below the limit.
        generations: where it holds; empty is everywhere.
        shape: what it holds for; a value, several, or {min, max} for each named part of a shape; None where the shape
            must have no such part.
    """

    text: str
    kernels: tuple[str, ...]
    figure: str
    limit: float
    strict: bool = False
    generations: tuple[str, ...] = ()
    shape: Mapping[str, Any] = field(default_factory=dict)

    def applies(self, kernel: str, generation: str, shape: Shape) -> bool:
        """Whether this bar is one for a kernel at a shape."""
        named = kernel in self.kernels or ("*" in self.kernels and kernel != "step")
        return (
            named
            and generation in (self.generations or (generation,))
            and all(_allows(allowed, shape.get(name)) for name, allowed in self.shape.items())
        )

    def met(self, figures: Mapping[str, float | None]) -> bool:
        """Whether the figure is there and keeps the limit."""
        figure = figures.get(self.figure)
        return figure is not None and (figure < self.limit if self.strict else figure <= self.limit)


@cache
def kernel_bars() -> tuple[Bar, ...]:
    """All bars."""
    return tuple(map(_bar, yaml.safe_load((files(__package__) / "kernel_bars.yaml").read_text())))


def _bar(given: Mapping[str, Any]) -> Bar:
    strict = "below" in given
    kernels = given["kernel"]
    return Bar(
        text=given["text"],
        kernels=(kernels,) if isinstance(kernels, str) else tuple(kernels),
        figure=given["figure"],
        limit=float(given["below" if strict else "at_most"]),
        strict=strict,
        generations=tuple(given.get("generations", ())),
        shape=given.get("shape", {}),
    )


def _allows(allowed: int | str | Sequence[int | str] | Mapping[str, int] | None, value: int | str | None) -> bool:
    if allowed is None or value is None:
        return allowed is value
    if isinstance(allowed, Mapping):
        low, high = allowed.get("min"), allowed.get("max")
        return isinstance(value, int) and (low is None or value >= low) and (high is None or value <= high)
    if isinstance(allowed, int | str):
        return value == allowed
    return value in allowed
