"""Byte ranges of a file: where a box of a row-major array lies in it, and which ranges are worth one request."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np
from jaxtyping import Int64

type Box = tuple[tuple[int, int], ...]
"""Start and stop along each axis of an array."""


@dataclass(frozen=True)
class Runs:
    """Byte ranges of one length at regular distances, in ascending order.

    Args:
        start: byte offset of the first.
        length: bytes of each.
        counts: how many there are along each of the axes that they repeat over, the slowest first.
        strides: bytes from one to the next along these axes.
    """

    start: int
    length: int
    counts: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        return prod(self.counts)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return self.count * self.length

    def starts(self) -> Int64[np.ndarray, "runs"]:
        """Byte offset of each."""
        at = np.array([self.start], np.int64)
        for count, stride in zip(self.counts, self.strides, strict=True):
            at = (at[:, None] + np.arange(count, dtype=np.int64) * stride).reshape(-1)
        return at


def whole(shape: tuple[int, ...]) -> Box:
    """All of an array."""
    return tuple((0, size) for size in shape)


def volume(box: Box) -> int:
    """Elements of a box."""
    return prod(stop - start for start, stop in box)


def overlap(one: Box, other: Box) -> Box | None:
    """What two boxes share."""
    common = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
    return common if all(start < stop for start, stop in common) else None


def runs_of(shape: tuple[int, ...], width: int, box: Box, start: int = 0) -> Runs:
    """Where a box of a row-major array lies.

    Args:
        shape: of the array.
        width: bytes of an element.
        box: what is wanted of it.
        start: byte offset of the array.
    """
    strides = [width * prod(shape[i + 1 :]) for i in range(len(shape))]
    start += sum(first * stride for (first, _), stride in zip(box, strides, strict=True))
    length, axis = width, len(shape)
    while axis > 0:  # grows the run over axes that are taken whole, and over one that is not
        axis -= 1
        first, last = box[axis]
        length *= last - first
        if last - first < shape[axis]:
            break
    counts = tuple(last - first for first, last in box[:axis])
    kept = [i for i, count in enumerate(counts) if count != 1]
    return Runs(start, length, tuple(counts[i] for i in kept), tuple(strides[i] for i in kept))


def coalesced(runs: Runs, max_waste: float) -> list[tuple[int, int]]:
    """Start and stop of ranges that hold all runs, as few as a share of unwanted bytes allows.

    Args:
        runs: what is wanted.
        max_waste: most unwanted bytes, as a part of the wanted ones. The smallest gaps are read over first.
    """
    starts = runs.starts()
    gaps = starts[1:] - starts[:-1] - runs.length
    order = np.argsort(gaps, kind="stable")
    allowed = np.cumsum(gaps[order]) <= int(max_waste * runs.nbytes)
    bridged = np.zeros(len(gaps), np.bool_)
    bridged[order[allowed]] = True
    edges = [0, *(np.flatnonzero(~bridged) + 1).tolist(), len(starts)]
    return [(int(starts[a]), int(starts[b - 1]) + runs.length) for a, b in pairwise(edges)]


def cut(ranges: list[tuple[int, int]], most: int) -> Iterator[tuple[int, int]]:
    """The same ranges, none longer than `most` bytes."""
    for start, stop in ranges:
        edges = [*range(start, stop, most), stop]
        yield from pairwise(edges)
