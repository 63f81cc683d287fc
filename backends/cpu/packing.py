"""Weights in the panels that the matmul kernels read."""

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int8, Int32, Num

from ..quantized import Quantized, scales
from .tile import tile


@no_type_check  # JAX rebuilds it around tracers, shapes and shardings
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedMatrix:
    """Matrices [*stack, *out, *inner] of which `linear` contracts the inner axes, as the kernels want them.

    `panels` is [S, N / columns, K / group, columns, group] for all S stacked matrices [N, K], padded with zeros
    (matmul.py says why). `first` is the number of the first of those that this object stands for; None is 0.
    """

    panels: Float[Array, "S P W C G"]
    first: Int[Array, ""] | None
    stack: tuple[int, ...] = field(metadata={"static": True})
    out: tuple[int, ...] = field(metadata={"static": True})
    inner: tuple[int, ...] = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.stack, *self.out, *self.inner)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> jnp.dtype:
        return self.panels.dtype

    @property
    def number(self) -> Int[Array, ""]:
        return jnp.int32(0) if self.first is None else self.first

    def layer(self, index: Int[Array, ""]) -> "PackedMatrix":
        """One entry of the first stacked axis. Nothing is copied: the kernels find the matrix by its number."""
        first = self.number + index.astype(jnp.int32) * math.prod(self.stack[1:])
        return replace(self, first=first, stack=self.stack[1:])

    def rows(self, ids: Int[Array, "T"]) -> Float[Array, "T K"]:
        """Some rows of a single matrix."""
        columns = self.panels.shape[3]
        rows = self.panels[self.number, ids // columns, :, ids % columns]
        return rows.reshape(ids.shape[0], -1)[:, : math.prod(self.inner)]


@no_type_check
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedInt8(PackedMatrix):
    """Matrices of whole numbers with a scale for each output; see Quantized.

    `scales` holds the bits of fp32 scales and, to be taken off each sum, 128 times the sum of an output's numbers:
    the kernel multiplies with activations that have 128 added.
    """

    scales: Int32[Array, "S P 2 C"]
    of: jnp.dtype = field(metadata={"static": True})
    activations: bool = field(metadata={"static": True})

    @property
    def dtype(self) -> jnp.dtype:
        return self.of

    def rows(self, ids: Int[Array, "T"]) -> Float[Array, "T K"]:
        columns = self.panels.shape[3]
        scale = self.scales[self.number, ids // columns, 0, ids % columns]
        scaled = super().rows(ids).astype(jnp.float32) * jax.lax.bitcast_convert_type(scale, jnp.float32)[:, None]
        return scaled.astype(self.of)


def is_packed(leaf: Any) -> bool:
    return isinstance(leaf, PackedMatrix)


def pack(weight: Float[Array | np.ndarray, "..."], num_stacked: int, num_contracted: int) -> PackedMatrix:
    """Packs a weight [*stack, *out, *inner] by how many axes are of the first and of the last kind."""
    end = len(weight.shape) - num_contracted
    stack, out, inner = weight.shape[:num_stacked], weight.shape[num_stacked:end], weight.shape[end:]
    panels = _pack(weight, math.prod(stack), math.prod(out), math.prod(inner), tile().columns)
    return PackedMatrix(panels, None, stack, out, inner)


def pack_int8(weight: Quantized, num_stacked: int, num_contracted: int) -> PackedInt8:
    """Packs whole numbers [*stack, *out, *inner] that have one scale for each output."""
    end = weight.ndim - num_contracted
    stack, out, inner = weight.shape[:num_stacked], weight.shape[num_stacked:end], weight.shape[end:]
    sizes = math.prod(stack), math.prod(out), math.prod(inner)
    panels = _pack(weight.values, *sizes, tile().columns)
    both = _pack_scales(weight.values, scales(weight), *sizes, tile().columns)
    return PackedInt8(panels, None, stack, out, inner, both, weight.dtype, weight.activations)


@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _pack_scales(
    values: Int8[Array, "..."], scale: Float[Array, "..."], matrices: int, rows: int, width: int, columns: int
) -> Int32[Array, "S P 2 C"]:
    sums = 128 * values.reshape(matrices, rows, width).astype(jnp.int32).sum(axis=2)
    bits = jax.lax.bitcast_convert_type(scale.reshape(matrices, rows), jnp.int32)
    both = jnp.pad(jnp.stack([bits, sums], axis=1), ((0, 0), (0, 0), (0, -rows % columns)))
    return both.reshape(matrices, 2, -1, columns).swapaxes(1, 2)


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _pack(
    weight: Num[Array | np.ndarray, "..."], matrices: int, rows: int, width: int, columns: int
) -> Num[Array, "S P W C G"]:
    group = 4 // weight.dtype.itemsize
    padded = jnp.pad(weight.reshape(matrices, rows, width), ((0, 0), (0, -rows % columns), (0, -width % group)))
    split = padded.reshape(matrices, padded.shape[1] // columns, columns, padded.shape[2] // group, group)
    return split.transpose(0, 1, 3, 2, 4)
