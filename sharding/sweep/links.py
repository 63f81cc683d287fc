"""What collectives take on the links of a slice: seconds for each byte, and hops.

A collective runs along some axes of a mesh, among groups of devices. Where a group's chips form a box of the grid, each
side of the box carries its share: a side that wraps around sends both ways, one that does not only one way at its ends.
On several sides at once the links of all of them work. Sides whose chips are not neighbours share links with the groups
between them. Formulas: Austin et al., How to Scale Your Model (2025), sections on TPUs and on sharding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import inf, prod

from ..collectives import Sent
from ..layout import Axes, Layout
from .efficiency import Efficiency
from .slices import Slice

_BETWEEN_HOPS = 20
"""Hops of the links inside a slice that one way between slices takes: an assumption, nobody publishes the time."""


@dataclass(frozen=True)
class Cost:
    """Of one collective: seconds for each byte (of Sent.num_bytes), at nominal rates, and hops one after the other.

    `dcn_seconds_per_byte` is the part between slices.
    """

    seconds_per_byte: float = 0.0
    hops: float = 0.0
    dcn_seconds_per_byte: float = 0.0


@dataclass(frozen=True)
class Side:
    """A side of the box that a group's chips form: how many chips, how far from one to the next, and whether the last
    one is linked to the first."""

    size: int
    stride: int
    wraps: bool


@dataclass(frozen=True)
class Links:
    """The links of a slice, as a layout's mesh lies on it."""

    slice: Slice
    layout: Layout

    @cached_property
    def _strides(self) -> dict[str, int]:
        strides, stride = {}, 1
        for axis, size in reversed(self.layout.mesh):
            strides[axis] = stride
            stride *= size
        return strides

    def cost(self, op: str, axes: Axes, *, ring: bool = False) -> Cost:
        """Of one collective along some axes.

        Args:
            op: as Sent has it.
            ring: of a permute: the last device sends to the first one too.
        """
        key = (op, axes, ring)
        if key not in self._known:
            self._known[key] = self._cost(op, axes, ring=ring)
        return self._known[key]

    def seconds(self, sent: Sent, at: Efficiency) -> float:
        """What collectives that are alike take, one after another."""
        cost = self.cost(sent.op, sent.axes, ring=sent.ring)
        each = sent.num_bytes * (cost.seconds_per_byte + cost.dcn_seconds_per_byte) / at.links
        return sent.count * (each + cost.hops * at.hop_seconds)

    @cached_property
    def _known(self) -> dict[tuple[str, Axes, bool], Cost]:
        return {}

    def _cost(self, op: str, axes: Axes, *, ring: bool) -> Cost:
        sizes = [self.layout.sizes[axis] for axis in axes]
        group = [
            sum(at * self._strides[axis] for at, axis in zip(place, axes, strict=True))
            for place in product(*map(range, sizes))
        ]
        if len(group) < 2:
            return Cost()
        places = [self.slice.coordinates[number] for number in sorted(group)]
        slices = len({place[0] for place in places})
        chips = len({place[2:] for place in places})
        inside = self._inside(op, places, chips, ring=ring) if chips > 1 else Cost()
        if slices == 1:
            return inside
        rate = self.slice.chip.dcn_bytes_per_second
        if rate is None:
            return Cost(inf, inf)
        # Each chip of a slice's part of the group sends its share to its partners in the others.
        times = 2 if op == "all-reduce" else 1
        share = times * (slices - 1) / slices / chips
        if op == "collective-permute":
            share = 1.0
        hops = inside.hops + times * _BETWEEN_HOPS
        return Cost(inside.seconds_per_byte, hops, share / (rate / self.slice.chip.devices_per_chip))

    def _inside(self, op: str, places: list[tuple[int, ...]], chips: int, *, ring: bool) -> Cost:
        chip = self.slice.chip
        if chip.links is None or chip.link_bytes_per_second is None:
            return Cost(inf, inf)
        rate = chip.link_bytes_per_second
        if chip.fabric == "torus":
            # The cores of a chip have its links together.
            return torus_cost(op, self._sides(places), rate / chip.devices_per_chip, ring=ring)
        others = (chip.node_chips or chips) - 1
        # A switch gives all links to any pair; in a mesh each pair has its own.
        whole = chip.links * rate
        pair = whole if chip.fabric == "switch" else whole / max(1, others)
        reached = whole if chip.fabric == "switch" else pair * (chips - 1)
        if op == "collective-permute":
            return Cost(1 / pair, 1.0)
        times = 2 if op == "all-reduce" else 1
        return Cost(times * (chips - 1) / chips / reached, float(times))

    def _sides(self, places: list[tuple[int, ...]]) -> list[Side]:
        sides: list[Side] = []
        for axis, along in enumerate(zip(*(place[2:] for place in places), strict=True)):
            values = sorted(set(along))
            if len(values) > 1:
                stride = values[1] - values[0]
                whole = len(values) * stride == self.slice.shape[axis]
                sides.append(Side(len(values), stride, whole and self.slice.wraps(axis)))
        return sides


def torus_cost(op: str, sides: Sequence[Side], rate: float, *, ring: bool = False) -> Cost:
    """Of a collective among chips that form a box of a torus.

    Args:
        op, ring: as for Links.cost.
        sides: of the box.
        rate: bytes each second of one link, in one direction.
    """
    chips = prod(side.size for side in sides)
    if op == "collective-permute":
        stride = min(side.stride for side in sides)
        around = max(side.stride * (side.size - 1) for side in sides)
        wraps = all(side.wraps for side in sides)
        return Cost(stride / rate, float(stride if wraps or not ring else around))
    lines = any(not side.wraps for side in sides)
    together = sum((2 if side.wraps else 1) * rate / side.stride for side in sides)
    hops = sum(side.stride * (side.size / 2 if side.wraps else side.size - 1) for side in sides)
    if op == "all-to-all":
        # Half of the devices send half of what they hold through a cut across a side, one way and the other: the links
        # of as many rows as stand beside each other there, each of `size` chips.
        slowest = max(side.size * side.stride / (2 if side.wraps else 1) for side in sides)
        return Cost(slowest / 4 / rate, float(hops))
    gather = ((chips - 1) / chips if lines else 1.0) / together
    times = 2 if op == "all-reduce" else 1
    return Cost(times * gather, float(times * hops))
