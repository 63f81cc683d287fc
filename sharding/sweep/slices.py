"""What a sweep runs on: chips of one kind that stand beside each other, perhaps several such slices."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

from ...backends.compiler.topologies import EXAMPLES
from ...backends.hardware import Chip, chip
from .errors import SweepError

_NAME = re.compile(r"(?P<chip>[a-z0-9.-]+)[:x](?P<shape>\d+(x\d+)*)(\*(?P<slices>\d+))?")
_HOST = 2
"""TPU hosts have blocks of 2 x 2 chips: devices are numbered block by block."""


@dataclass(frozen=True)
class Slice:
    """Chips along the axes of a grid; `count` such slices are joined by the data-centre network.

    Devices are numbered as JAX lists those of a TPU: slice by slice, in it host by host, in each chip core by core; the
    first axis of the grid runs fastest.
    """

    chip: Chip
    shape: tuple[int, ...]
    count: int = 1

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}{f'*{self.count}' if self.count > 1 else ''}"

    @property
    def topology(self) -> str:
        """Of one slice, as compilers know it."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def num_chips(self) -> int:
        return prod(self.shape) * self.count

    @property
    def num_devices(self) -> int:
        return self.num_chips * self.chip.devices_per_chip

    @property
    def device_memory(self) -> int:
        """Bytes of a device that programs may take."""
        return self.chip.device_program_bytes

    @property
    def grid(self) -> tuple[int, ...]:
        """Chips along each axis; those of a node stand in one row."""
        return self.shape if self.chip.fabric == "torus" else (prod(self.shape),)

    @cached_property
    def coordinates(self) -> tuple[tuple[int, ...], ...]:
        """Of each device: number of its slice, core of its chip, and its chip's place in the grid."""
        grid = self.grid
        blocks = [min(_HOST, size) if axis < 2 and size % 2 == 0 else 1 for axis, size in enumerate(grid)]
        if self.chip.fabric != "torus":
            blocks = [1]
        found: list[tuple[int, ...]] = []
        outer = [range(size // block) for size, block in zip(grid, blocks, strict=True)]
        inner = [range(block) for block in blocks]
        for number in range(self.count):
            for host in product(*reversed(outer)):
                for place in product(*reversed(inner)):
                    at = [h * b + p for h, p, b in zip(reversed(host), reversed(place), blocks, strict=True)]
                    found += [(number, core, *at) for core in range(self.chip.devices_per_chip)]
        return tuple(found)

    def wraps(self, axis: int) -> bool:
        """Whether the last chip along a grid axis is linked to the first one: on grids of two axes along whole rows of
        16, on grids of three along all axes, where each is a multiple of 4 (cubes of 4 x 4 x 4)."""
        if self.chip.fabric != "torus":
            return False
        if self.chip.torus_axes == 3:
            return len(self.shape) == 3 and all(size % 4 == 0 for size in self.shape)
        return self.shape[axis] == 16


def parse_slice(text: str, chips: Mapping[str, Chip] | None = None) -> Slice:
    """Reads "v6e:2x4", "h100:8" (or "h100x8"), "v5e:16x16*2" (two slices).

    Raises:
        SweepError: not of that form, or chips that do not come like that.
        UnsupportedError: an unknown chip.
    """
    found = _NAME.fullmatch(text.strip())
    if found is None:
        raise SweepError(f"--hw {text!r}: name chips and how they stand, such as {EXAMPLES}, v5e:16x16*2 (two slices)")
    known = chip(found["chip"], chips)
    made = Slice(known, tuple(map(int, found["shape"].split("x"))), int(found["slices"] or 1))
    problem = _impossible(made)
    if problem:
        raise SweepError(f"--hw {text}: {problem}")
    return made


def _impossible(of: Slice) -> str | None:
    chip, shape = of.chip, of.shape
    if min(shape) < 1 or of.count < 1:
        return "no chips"
    if chip.fabric == "torus":
        axes = chip.torus_axes or 2
        if len(shape) != axes:
            return f"{chip.name} slices have {axes} axes, such as {'2x2x4' if axes == 3 else '4x4'}"
        odd = [size for size in shape if size not in (1, 2) and size % 4]
        if axes == 2:
            odd = [size for size in shape if size not in (1, 2, 4, 8, 16)]
        if odd:
            return (
                f"no {chip.name} slice is {odd[0]} chips long: {'1, 2, 4, 8 or 16' if axes == 2 else '1, 2 or 4n'} are"
            )
        return None
    if of.count > 1:
        return f"only TPUs come in slices; {chip.name}:{of.num_chips} names as many chips"
    if chip.node_chips is not None and of.num_chips > chip.node_chips:
        return (
            f"links join {chip.node_chips} {chip.name}; what joins more is not in the hardware table "
            "(give node_chips in a file with --chips)"
        )
    return None
