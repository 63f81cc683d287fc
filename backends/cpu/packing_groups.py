"""Quantised weights in panels that keep their numbers as they are stored; see groups.py."""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num, UInt8

from ..quantized import Quantized, Rounding, dequantized
from .groups import KINDS, SCALES, STEP, Groups, held_as
from .packing import PackedMatrix
from .tile import SHORT, tile


@no_type_check  # JAX rebuilds it around tracers, shapes and shardings
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedGroups(PackedMatrix):
    """Matrices of stored numbers with scales for groups of K: `panels` is uint8[S, N / columns, groups, bytes]."""

    groups: Groups = field(metadata={"static": True})
    of: jnp.dtype = field(metadata={"static": True})

    @property
    def dtype(self) -> jnp.dtype:
        return self.of

    def rows(self, ids: Int[Array, "T"]) -> Float[Array, "T K"]:
        """Some rows of a single matrix."""
        columns, lanes, how = tile().columns, tile().lanes, self.groups
        panel, column = (ids // columns)[:, None, None], (ids % columns)[:, None, None]
        group = jnp.arange(self.panels.shape[2])[:, None]

        def found(places: Int[Array, "T #groups bytes"]) -> UInt8[Array, "T groups bytes"]:
            return self.panels[self.number, panel, group, places]

        def of_columns(start: int, kind: str) -> Num[Array, "T groups"]:
            each = SCALES[kind]
            taken = found(start + column * each + jnp.arange(each))
            return jax.lax.bitcast_convert_type(taken if each > 1 else taken[..., 0], jnp.dtype(kind))

        scale = of_columns(0, how.scales)
        minimum = None if how.minima is None else of_columns(columns * SCALES[how.scales], how.minima)
        # Where the numbers of a group stand among those of all columns.
        within = jnp.arange(math.prod(self.inner) // self.panels.shape[2])
        at = how.pair * (within // how.pair * columns + column) + within % how.pair
        if how.in_halves:
            vector = at // lanes
            taken = found(how.head_bytes + vector // 8 * how.step_bytes + at % lanes * 4 + vector % 8 // 2)
            halves = (taken >> (vector % 2 * 4).astype(jnp.uint8)) & 15
            values = halves[..., ::2] | halves[..., 1::2] << 4
        else:
            values = jax.lax.bitcast_convert_type(found(how.head_bytes + at), jnp.dtype(how.kind))
        values = values.reshape(len(ids), -1)
        scaled = dequantized(Quantized(values, scale, how.kind, self.of), jnp.float32)
        if minimum is not None:
            # Behind a barrier, or XLA rounds product and sum at once.
            scaled = jax.lax.optimization_barrier(scaled).reshape(*minimum.shape, -1)
            scaled = (scaled + minimum.astype(jnp.float32)[..., None]).reshape(values.shape[0], -1)
        return scaled.astype(self.of)


def how_packed(weight: Quantized, num_contracted: int) -> Groups | None:
    """How the kernels of groups take a weight [*stack, *out, *inner]; None: they do not."""
    rounding, inner = Rounding.of(weight, num_contracted), weight.shape[weight.ndim - num_contracted :]
    steps = _in_line(inner, rounding.groups)
    types = {rounding.scales, rounding.minima} - {None}
    fits = weight.kind in KINDS and types <= set(SCALES) and math.prod(inner) // math.prod(steps) % STEP == 0
    if not fits or weight.dtype.name not in SHORT or math.prod(inner) % STEP:
        return None
    minima = None if rounding.minima is None else held_as(rounding.minima)
    return Groups(SHORT[weight.dtype.name], weight.kind, held_as(rounding.scales), minima)


def pack_groups(weight: Quantized, num_stacked: int, num_contracted: int, groups: Groups) -> PackedGroups:
    """Packs a weight [*stack, *out, *inner] as how_packed says."""
    end = weight.ndim - num_contracted
    stack, out, inner = weight.shape[:num_stacked], weight.shape[num_stacked:end], weight.shape[end:]
    sizes = math.prod(stack), math.prod(out)
    values = jnp.asarray(weight.values).reshape(*sizes, -1)
    scales = [
        _of_rows(leaf, weight.shape[:end], inner).reshape(*sizes, -1)
        for leaf in (weight.scale, weight.minimum)
        if leaf is not None
    ]
    return PackedGroups(_pack(values, scales, groups, tile().columns), None, stack, out, inner, groups, weight.dtype)


def _in_line(inner: tuple[int, ...], groups: tuple[int, ...]) -> tuple[int, ...]:
    """How many groups each axis has to have, so that all lie behind one another in the flattened axes: where a later
    axis is divided, each entry of those in front of it has groups of its own."""
    made = list(groups)
    for axis in range(len(groups)):
        if math.prod(groups[axis + 1 :]) > 1:
            made[axis] = inner[axis]
    return tuple(made)


def _of_rows(leaf: Num[Array, "..."], rows: tuple[int, ...], inner: tuple[int, ...]) -> Num[Array, "..."]:
    """Scales or minima of all rows, each with those of its groups; see _in_line."""
    leaf = jnp.asarray(leaf)
    groups = _in_line(inner, leaf.shape[len(rows) :])
    for axis, (size, count) in enumerate(zip(groups, leaf.shape[len(rows) :], strict=True), len(rows)):
        leaf = jnp.repeat(leaf, size // count, axis=axis) if size != count else leaf
    return jnp.broadcast_to(leaf, (*rows, *groups))


@partial(jax.jit, static_argnums=(2, 3))
def _pack(
    values: Num[Array, "S N bytes"], scales: list[Num[Array, "S N groups"]], groups: Groups, columns: int
) -> UInt8[Array, "S P groups packed"]:
    """One matrix after the other, so that little memory is taken beside the result."""

    def one(given: tuple[Num[Array, "N bytes"], list[Num[Array, "N groups"]]]) -> UInt8[Array, "P groups packed"]:
        matrix, of_groups = given
        num_groups, behind = of_groups[0].shape[1], ((0, -matrix.shape[0] % columns), (0, 0))
        matrix = jnp.pad(matrix, behind)
        if groups.in_halves:
            matrix = jnp.stack([matrix & 15, matrix >> 4], axis=-1).reshape(matrix.shape[0], -1)
        # Columns of words of numbers, as in packing.py.
        numbers = matrix.reshape(-1, columns, matrix.shape[1] // groups.pair, groups.pair).swapaxes(1, 2)
        if groups.in_halves:
            vectors = numbers.reshape(numbers.shape[0], num_groups, -1, 4, 2, columns // tile().vectors)
            bytes_ = vectors[..., 0, :] | vectors[..., 1, :] << 4
            numbers = bytes_.swapaxes(-1, -2)
        parts: list[Any] = []
        for kind, leaf in zip((groups.scales, groups.minima), of_groups, strict=False):
            leaf = jnp.pad(leaf.astype(kind), behind).reshape(-1, columns, num_groups).swapaxes(1, 2)
            parts.append(jax.lax.bitcast_convert_type(leaf, jnp.uint8))
        parts.append(jax.lax.bitcast_convert_type(numbers, jnp.uint8))
        return jnp.concatenate([part.reshape(numbers.shape[0], num_groups, -1) for part in parts], axis=2)

    return jax.lax.map(one, (values, scales))
