"""The shards of a leaf that this process holds: what of the stored leaf each needs, and how they become one array."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxtyping import Shaped

from ..decoder import WeightSpec
from .base import Placed
from .runs import Box, volume

ALIGNMENT = 64  # JAX on the CPU takes over numpy buffers aligned so, without a copy

type ReadBoxes = Callable[[list[Box]], list[np.ndarray]]
"""Reads some boxes of a stored leaf."""


@dataclass(frozen=True)
class Shard:
    """A part of a leaf, and the devices that hold it. `bounds` are those of the leaf with copies and padding."""

    bounds: Box
    devices: tuple[Any, ...]


def placed_as(spec: WeightSpec, place: jax.sharding.Sharding | Placed) -> Placed:
    """A leaf that is held as it is stored has neither copies nor padding."""
    if isinstance(place, Placed):
        return place
    return Placed(place, spec.shape, (1,) * len(spec.shape))


def shards_of(placed: Placed) -> list[Shard]:
    """The distinct parts that the devices of this process hold."""
    held: dict[Box, list[Any]] = {}
    for device, index in placed.sharding.addressable_devices_indices_map(placed.shape).items():
        slices = index or (slice(None),) * len(placed.shape)
        bounds = tuple(s.indices(n)[:2] for s, n in zip(slices, placed.shape, strict=True))
        held.setdefault(bounds, []).append(device)
    return [Shard(bounds, tuple(devices)) for bounds, devices in held.items()]


def stored_box(shape: tuple[int, ...], copies: tuple[int, ...], bounds: Box) -> Box:
    """The part of a stored leaf that a shard is made of; along an axis that is padding alone nothing.

    Args:
        shape: of the stored leaf.
        copies: how often each entry is held along each axis.
        bounds: of the shard, counted with copies and padding.
    """
    return tuple(
        (min(size, start // times), min(size, -(-stop // times)))
        for (start, stop), size, times in zip(bounds, shape, copies, strict=True)
    )


def boxes_of(spec: WeightSpec, placed: Placed) -> dict[Box, list[Shard]]:
    """The parts of a stored leaf that this process reads, and the shards that are made of each."""
    by_box: dict[Box, list[Shard]] = {}
    for shard in shards_of(placed):
        by_box.setdefault(stored_box(spec.shape, placed.copies, shard.bounds), []).append(shard)
    return by_box


def place_leaf(
    spec: WeightSpec, place: jax.sharding.Sharding | Placed, read: ReadBoxes, *, together: bool
) -> jax.Array:
    """A leaf as one array, of what this process holds of it.

    Args:
        spec: the leaf as it is stored.
        place: where it lives.
        read: reads boxes of the stored leaf.
        together: all shards in one call of `read`; otherwise host memory has one shard at a time where devices have
            a memory of their own.
    """
    placed = placed_as(spec, place)
    by_box = boxes_of(spec, placed)
    boxes = list(by_box)
    made: dict[Any, jax.Array] = {}
    for group in [boxes] if together else [[box] for box in boxes]:
        for box, found in zip(group, read(group), strict=True):
            for shard in by_box[box]:
                buffer = _arranged(found, box, shard.bounds, placed)
                for device in shard.devices:
                    where = SingleDeviceSharding(device, memory_kind=placed.sharding.memory_kind)
                    made[device] = jax.device_put(buffer, where)
        jax.block_until_ready(list(made.values()))
    return jax.make_array_from_single_device_arrays(
        placed.shape, placed.sharding, list(made.values()), dtype=spec.dtype
    )


def _arranged(found: np.ndarray, box: Box, bounds: Box, placed: Placed) -> np.ndarray:
    """What was read, with copies and zeros."""
    for axis, ((low, high), (start, stop), copies) in enumerate(zip(box, bounds, placed.copies, strict=True)):
        if copies > 1:
            which = np.arange(start, stop) // copies - low
            taken = aligned_empty((*found.shape[:axis], stop - start, *found.shape[axis + 1 :]), found.dtype)
            found = np.take(found, which, axis=axis, out=taken)
        elif high - low < stop - start:
            padded = aligned_empty((*found.shape[:axis], stop - start, *found.shape[axis + 1 :]), found.dtype)
            padded[(slice(None),) * axis + (slice(high - low, None),)] = 0
            padded[(slice(None),) * axis + (slice(0, high - low),)] = found
            found = padded
    return found


def aligned_empty(shape: tuple[int, ...], dtype: jnp.dtype) -> Shaped[np.ndarray, "..."]:
    """An uninitialised array whose first byte lies on a multiple of ALIGNMENT."""
    nbytes = prod(shape) * dtype.itemsize
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes].view(dtype).reshape(shape)


def groups_of(boxes: list[Box]) -> list[tuple[Box, list[int]]]:
    """Boxes that fill one larger box together are read as that; others, such as two columns with a gap, one by one.

    Returns:
        What to read, and the numbers of the boxes in it.
    """
    filled = [i for i, box in enumerate(boxes) if volume(box)]
    if not filled:
        return []
    union = tuple(
        (min(boxes[i][axis][0] for i in filled), max(boxes[i][axis][1] for i in filled))
        for axis in range(len(boxes[0]))
    )
    if sum(map(volume, {boxes[i] for i in filled})) == volume(union) or len(filled) == 1:
        return [(union, filled)]
    numbers: dict[Box, list[int]] = {}
    for i in filled:
        numbers.setdefault(boxes[i], []).append(i)
    return list(numbers.items())


def relative(box: Box, outer: Box) -> tuple[slice, ...]:
    """A box as slices of the box around it."""
    return tuple(slice(start - first, stop - first) for (start, stop), (first, _) in zip(box, outer, strict=True))
