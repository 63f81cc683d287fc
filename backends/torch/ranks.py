"""Processes that run one program together, each with a device's part of it, as torch.distributed numbers them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from .names import torch


@dataclass(frozen=True)
class Ranks:
    """One process among those of a mesh; torch.distributed has been started.

    Groups of fewer than all are made when a program first asks for them: by all processes in the same order, since all
    build the same programs.

    Args:
        sizes: of the mesh's axes, the slowest first.
        rank: this process'.
    """

    sizes: tuple[tuple[str, int], ...]
    rank: int
    _groups: dict[tuple[str, ...], Any] = field(default_factory=dict, repr=False, compare=False)

    def size(self, axes: Sequence[str]) -> int:
        """The processes along these axes."""
        return math.prod(size for axis, size in self.sizes if axis in axes)

    def place(self, axes: Sequence[str]) -> int:
        """This process' number among those along these axes."""
        return _place(self.sizes, self._at(self.rank), axes)

    def ordered(self, axes: Sequence[str]) -> bool:
        """Whether axes are named in the mesh's order, in which a group numbers its processes."""
        return list(axes) == [axis for axis, _ in self.sizes if axis in axes]

    def group(self, axes: tuple[str, ...]) -> Any:
        """torch.distributed's group of this process and those that differ from it along these axes alone."""
        if axes not in self._groups:
            others = tuple(axis for axis, _ in self.sizes if axis not in axes)
            members: list[list[int]] = [[] for _ in range(self.size(others))]
            everybody = product(*(range(size) for _, size in self.sizes))
            for rank, at in enumerate(everybody):
                members[_place(self.sizes, at, others)].append(rank)
            made = [torch.distributed.new_group(ranks) for ranks in members]
            self._groups[axes] = made[self.place(others)]
        return self._groups[axes]

    def _at(self, rank: int) -> tuple[int, ...]:
        at: list[int] = []
        for _, size in reversed(self.sizes):
            rank, place = divmod(rank, size)
            at.append(place)
        return tuple(at[::-1])


def _place(sizes: tuple[tuple[str, int], ...], at: Sequence[int], axes: Sequence[str]) -> int:
    number = 0
    for (axis, size), place in zip(sizes, at, strict=True):
        if axis in axes:
            number = number * size + place
    return number
