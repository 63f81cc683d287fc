"""Which part of each weight lies where, and the copies and padding that make it split evenly."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import lcm, prod

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from ..backends.base import PyTree
from ..backends.quantized import Rounding
from ..models.checkpoints import Placed
from ..models.checkpoints.runs import Box
from ..models.config import ModelConfig
from ..models.decoder import WeightSpec, weight_specs
from .errors import IndivisibleError
from .layout import Axes, Layout
from .stages import Stages


@dataclass(frozen=True)
class Arranged:
    """One leaf under a layout.

    Args:
        shape: of the whole, with copies and padding.
        axes: the mesh axes that split each dimension.
        part: shape of what one device holds.
        copies: how often each KV head is held, beside itself along its axis.
        dtype: as in the model.
    """

    shape: tuple[int, ...]
    axes: tuple[Axes, ...]
    part: tuple[int, ...]
    copies: int
    dtype: jnp.dtype
    logical: tuple[str, ...]

    @property
    def spec(self) -> PartitionSpec:
        return PartitionSpec(*(axes or None for axes in self.axes))

    @property
    def num_bytes(self) -> int:
        """Of one device's part."""
        return prod(self.part) * self.dtype.itemsize

    @property
    def repeats(self) -> tuple[int, ...]:
        """How often entries are held along each dimension."""
        return tuple(self.copies if logical == "kv_heads" else 1 for logical in self.logical)

    def thinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> "Arranged":
        """An array whose entries stand for one or some neighbours each along an axis of the leaf; a single one stands
        for all, whatever device they are on.

        Raises:
            IndivisibleError: an entry stands for numbers of two devices.
        """
        axes, part = list(self.axes), list(self.part)
        for i, (size, whole, own) in enumerate(zip(shape, self.shape, self.part, strict=True)):
            if size == 1:
                axes[i] = ()
            if size % (parts := 1 if size == 1 else whole // own):
                raise IndivisibleError(
                    f"{size} entries for {whole} of {self.logical[i]} do not divide into {parts} parts"
                )
            part[i] = size // parts
        return replace(self, shape=shape, axes=tuple(axes), part=tuple(part), dtype=jnp.dtype(dtype))

    def placed(self, mesh: Mesh) -> Placed:
        """For the loader: the leaf's place on a mesh of the layout's shape."""
        return Placed(NamedSharding(mesh, self.spec), self.shape, self.repeats)

    def bounds(self, position: int, layout: Layout) -> Box:
        """What a device holds of the leaf, by its position among the layout's: start and stop along each axis."""
        at: dict[str, int] = {}
        for axis, size in reversed(layout.mesh):
            position, at[axis] = divmod(position, size)
        found: list[tuple[int, int]] = []
        for axes, size in zip(self.axes, self.part, strict=True):
            number = 0
            for axis in axes:
                number = number * layout.sizes[axis] + at[axis]
            found.append((number * size, (number + 1) * size))
        return tuple(found)


def arranged(config: ModelConfig, layout: Layout, dtype: DTypeLike) -> Mapping[str, Arranged]:
    """Every leaf of a model's weights under a layout that check_layout has accepted, by its path."""
    stages = Stages(config, layout.parts("layers"))
    return {path: _arranged(spec, layout, stages) for path, spec in weight_specs(config, dtype).items()}


def kv_copies(num_kv_heads: int, layout: Layout) -> int:
    """How often a KV head is held where there are more parts than heads: query heads of two devices share it."""
    return lcm(num_kv_heads, layout.parts("cache_heads")) // num_kv_heads


def padded_vocab(vocab_size: int, layout: Layout) -> int:
    """The vocabulary with the rows that are added so that it splits."""
    parts = layout.parts("vocab")
    return -(-vocab_size // parts) * parts


def _arranged(spec: WeightSpec, layout: Layout, stages: Stages) -> Arranged:
    shape, axes, copies = list(spec.shape), [], 1
    for i, logical in enumerate(spec.axes):
        axes.append(layout.axes(logical))
        if logical == "layers":
            segment = int(spec.path.split(".")[1])
            if segment == stages.cut:
                shape[i] = stages.count * stages.repeats(segment)
            else:  # held by all stages
                axes[i] = ()
        elif logical == "kv_heads":
            copies = kv_copies(shape[i], layout)
            shape[i] *= copies
        elif logical == "vocab":
            shape[i] = padded_vocab(shape[i], layout)
    part = tuple(size // layout.size(along) for size, along in zip(shape, axes, strict=True))
    return Arranged(tuple(shape), tuple(axes), part, copies, jnp.dtype(spec.dtype), spec.axes)


def rounded(leaves: Mapping[str, Arranged], roundings: Mapping[str, Rounding]) -> dict[str, PyTree]:
    """The leaves, those that are rounded as Quantized of what holds their numbers and their scales.

    Numbers lie as the weight would. A scale lies with the numbers that it is for: where these are on several devices,
    each of them has it.

    Raises:
        IndivisibleError: a group of numbers, or a byte of two, would lie on two devices.
    """
    found: dict[str, PyTree] = dict(leaves)
    for path, rounding in roundings.items():
        leaf = leaves[path]
        try:
            parts = {name: leaf.thinned(part.shape, part.dtype) for name, part in rounding.parts(leaf.shape).items()}
        except IndivisibleError as error:
            raise IndivisibleError(f"{path} in {rounding.kind}: {error}") from None
        found[path] = rounding.held(parts, leaf.dtype)
    return found


def abstract(leaves: Mapping[str, PyTree], *, part: bool = False) -> dict[str, PyTree]:
    """The shapes of the whole, or of one device's part."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.part if part else a.shape, a.dtype), dict(leaves))
