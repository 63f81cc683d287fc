"""Processes that run one program together, each with a device's part of it, as torch.distributed numbers them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import product
from typing import Any

from ..errors import UnsupportedError
from .names import torch

_PATIENCE = 10
"""torch's limit for what processes tell each other, in limits of the caller's, who notices earlier that one is gone."""


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

    def members(self, axes: tuple[str, ...]) -> list[int]:
        """This process and those that differ from it along these axes alone, as torch.distributed numbers them all."""
        return self._split(axes)[self.place(self._others(axes))]

    def group(self, axes: tuple[str, ...]) -> Any:
        """torch.distributed's group of those."""
        if axes not in self._groups:
            made = [torch.distributed.new_group(ranks) for ranks in self._split(axes)]
            self._groups[axes] = made[self.place(self._others(axes))]
        return self._groups[axes]

    def _others(self, axes: Sequence[str]) -> tuple[str, ...]:
        return tuple(axis for axis, _ in self.sizes if axis not in axes)

    def _split(self, axes: Sequence[str]) -> list[list[int]]:
        """All processes, as groups along these axes."""
        others = self._others(axes)
        members: list[list[int]] = [[] for _ in range(self.size(others))]
        for rank, at in enumerate(product(*(range(size) for _, size in self.sizes))):
            members[_place(self.sizes, at, others)].append(rank)
        return members

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


def meet(by: str | None, host: str, port: int, *, rank: int, count: int, timeout: float) -> None:
    """Starts torch.distributed, unless it was started before.

    Args:
        by: its name of what processes tell each other by.
        host, port, rank, count, timeout: as OfProcesses.meet has them.

    Raises:
        UnsupportedError: the others were not found.
    """
    if torch.distributed.is_initialized():
        return
    limit = timedelta(seconds=timeout)
    try:
        store = torch.distributed.TCPStore(host, port, is_master=rank == 0, timeout=limit, wait_for_workers=False)
        torch.distributed.init_process_group(by, store=store, rank=rank, world_size=count, timeout=_PATIENCE * limit)
    except (RuntimeError, ValueError) as error:
        raise UnsupportedError(
            f"torch.distributed did not find {count} processes by way of {host}:{port} ({by}): {error}; each has to "
            "reach the others' network address, which GLOO_SOCKET_IFNAME or HCCL_SOCKET_IFNAME choose an interface for"
        ) from error
