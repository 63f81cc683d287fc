"""From a box of a leaf to the box of the tensor that holds it, and back: a family's view as offsets and strides."""

from dataclasses import dataclass
from math import prod

import numpy as np
from jaxtyping import Shaped

from .base import TensorInfo
from .pieces import Piece
from .runs import Box, whole


@dataclass(frozen=True)
class Entry:
    """How one entry of a piece's first axis lies in its rows of the tensor.

    A family's view only moves axes and leaves elements out, so that the entry is an array with strides over these rows.

    Args:
        rows: rows of the tensor for each entry.
        shape: of the entry, as the view gives it without axes of one element: at least as fine as the piece's axes.
        axes: the tensor's axis along which each of these moves.
        steps: how many elements of that axis.
        first: coordinates of the first element in the rows.
    """

    rows: int
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    steps: tuple[int, ...]
    first: tuple[int, ...]

    @classmethod
    def of(cls, piece: Piece, info: TensorInfo) -> "Entry":
        """The entries of a piece of a tensor."""
        source = piece.source
        rows = (info.shape[0] - source.start if source.rows is None else source.rows) // piece.shape[0]
        block = np.empty((rows, *info.shape[1:]), np.bool_)  # never touched: only its strides are looked at
        viewed = block if source.view is None else source.view(block)
        goal = tuple(size for size in piece.shape[1:] if size > 1)
        viewed = viewed.squeeze()
        if not _refines(viewed.shape, goal):
            viewed = viewed.reshape(goal, copy=False)
        axes: list[int] = []
        steps: list[int] = []
        for stride in viewed.strides:
            # Strides fall from axis to axis: the first that is no larger is the one moved along.
            axis = next(i for i, one in enumerate(block.strides) if block.shape[i] > 1 and one <= stride)
            axes.append(axis)
            steps.append(stride // block.strides[axis])
        offset = viewed.ctypes.data - block.ctypes.data
        first: list[int] = []
        for stride in block.strides:
            at, offset = divmod(offset, stride)
            first.append(at)
        return cls(rows, tuple(viewed.shape), tuple(axes), tuple(steps), tuple(first))

    def box(self, bounds: Box) -> Box:
        """The smallest box of an entry's rows that holds a box of the entry (axes as in `shape`)."""
        low, high = list(self.first), list(self.first)
        for (start, stop), axis, step in zip(bounds, self.axes, self.steps, strict=True):
            low[axis] += start * step
            high[axis] += (stop - 1) * step
        return tuple((a, b + 1) for a, b in zip(low, high, strict=True))

    def fine(self, shape: tuple[int, ...], bounds: Box) -> Box | None:
        """Bounds on a piece's axes behind the first as bounds on the axes of `shape`; None where they cut between."""
        found: list[tuple[int, int]] = []
        rest = iter(self.shape)
        for size, (start, stop) in zip(shape, bounds, strict=True):
            group: list[int] = []
            while prod(group) < size:
                group.append(next(rest))
            inner = prod(group[1:])
            if start % inner or stop % inner:
                return None
            if group:
                found += [(start // inner, stop // inner), *whole(tuple(group[1:]))]
        return tuple(found)

    def view(self, block: Shaped[np.ndarray, "..."], count: int, bounds: Box) -> Shaped[np.ndarray, "..."]:
        """Entries, cut to a box of `shape`, in a block that was read of their rows.

        Args:
            block: begins where the first entry's `box` does.
            count: how many entries.
            bounds: what `box` was asked for.
        """
        strides = [step * block.strides[axis] for axis, step in zip(self.axes, self.steps, strict=True)]
        shape = (count, *(stop - start for start, stop in bounds))
        return np.lib.stride_tricks.as_strided(block, shape, (self.rows * block.strides[0], *strides), writeable=False)


def _refines(fine: tuple[int, ...], coarse: tuple[int, ...]) -> bool:
    return {prod(coarse[:i]) for i in range(len(coarse) + 1)} <= {prod(fine[:i]) for i in range(len(fine) + 1)}
