"""Weights as small numbers times scales, and products with them, in plain jax.numpy.

`value * scale` with a scale for each output channel, or for each group of what a product sums over. Where activations
are rounded too (W8A8), each token has a scale of its own, found when it comes: int8 products are summed up as whole
numbers, so that the order does not matter.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num, UInt8

from .token_scales import LARGEST, rounded


@no_type_check  # JAX rebuilds it around tracers, shapes and shardings
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantized:
    """A weight [*stack, *out, *in] that stands for `values * scale`.

    Args:
        values: in the weight's shape; of "int4" two in a byte along the last axis, the even one in its low half, each
            with 8 added.
        scale: fp32, of as many axes: each has the weight's length divided by that of a group, 1 where all share it.
        kind: "int8", "int4" or "float8_e4m3fn".
        dtype: of the weight that it stands for, and so of embeddings that are read from it.
        activations: whether what is multiplied with it is rounded to the same type.
        out: lengths of the output's axes, where the weight has them as one, and those of the input too, since a
            backend likes it so; None: as the shape says.
    """

    values: Num[Array, "..."]
    scale: Float[Array, "..."]
    kind: str = field(metadata={"static": True})
    dtype: jnp.dtype = field(metadata={"static": True})
    activations: bool = field(default=False, metadata={"static": True})
    out: tuple[int, ...] | None = field(default=None, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        packed = 2 if self.kind == "int4" else 1
        return (*self.values.shape[:-1], packed * self.values.shape[-1])

    @property
    def ndim(self) -> int:
        return len(self.values.shape)

    @property
    def nbytes(self) -> int:
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in (self.values, self.scale))

    def per_channel(self, num_in: int) -> bool:
        """Whether each output, an index of all but the last `num_in` axes, has one scale."""
        return math.prod(self.scale.shape[self.ndim - num_in :]) == 1


@dataclass(frozen=True)
class Rounding:
    """How a weight [*stack, *out, *in] is held as Quantized.

    Args:
        kind, activations: of Quantized.
        groups: how many groups with a scale each axis of `in` has.
    """

    kind: str
    groups: tuple[int, ...]
    activations: bool = False

    @classmethod
    def of(cls, weight: Quantized, num_in: int) -> "Rounding":
        return cls(weight.kind, weight.scale.shape[weight.ndim - num_in :], weight.activations)

    def shapes(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the values and of the scales of a weight of this shape."""
        values = (*shape[:-1], shape[-1] // 2) if self.kind == "int4" else shape
        return values, (*shape[: len(shape) - len(self.groups)], *self.groups)

    @property
    def stored(self) -> jnp.dtype:
        """Type of the values as they are held."""
        return jnp.dtype("uint8" if self.kind == "int4" else self.kind)

    def held[Leaf](self, values: Leaf, scale: Leaf, dtype: DTypeLike) -> Any:
        """Quantized of whatever stands for values and scales."""
        return Quantized(values, scale, self.kind, jnp.dtype(dtype), self.activations)  # pyright: ignore[reportArgumentType]


def as_matrices(weight: Quantized, num_stacked: int, num_in: int) -> Quantized:
    """A weight [*stack, *out, *in] as [*stack, out, in], with `out` to tell."""
    end = weight.ndim - num_in
    out = weight.shape[num_stacked:end]

    def flat(leaf: Num[Array, "..."]) -> Num[Array, "..."]:
        return leaf.reshape(*leaf.shape[:num_stacked], math.prod(leaf.shape[num_stacked:end]), -1)

    return replace(weight, values=flat(weight.values), scale=flat(weight.scale), out=out)


def is_quantized(leaf: Any) -> bool:
    return isinstance(leaf, Quantized)


def numbers(weight: Quantized) -> Num[Array, "..."]:
    """The values, one an entry."""
    values = jnp.asarray(weight.values)
    if weight.kind != "int4":
        return values
    low, high = values & 15, values >> 4
    return (jnp.stack([low, high], axis=-1).astype(jnp.int8) - 8).reshape(*values.shape[:-1], -1)


def packed(values: Int[Array, "..."]) -> UInt8[Array, "..."]:
    """Numbers from -8 to 7 as "int4" holds them; see Quantized."""
    pairs = (values + 8).astype(jnp.uint8).reshape(*values.shape[:-1], -1, 2)
    return pairs[..., 0] | (pairs[..., 1] << 4)


def dequantized(weight: Quantized, dtype: DTypeLike | None = None) -> Float[Array, "..."]:
    """The weight that it stands for; in `dtype`, by default its own."""
    values, scale = numbers(weight), jnp.asarray(weight.scale)
    spread: list[int] = []
    for size, count in zip(values.shape, scale.shape, strict=True):
        spread += [count, size // count]
    grouped = values.reshape(spread).astype(jnp.float32) * jnp.expand_dims(scale, tuple(range(1, len(spread), 2)))
    return grouped.reshape(values.shape).astype(dtype or weight.dtype)


def rounded_tokens(x: Float[Array, "T K"], kind: str) -> tuple[Num[Array, "T K"], Float[Array, "T"]]:
    """Each token as small numbers, and its scale."""
    x = x.astype(jnp.float32)
    largest = jnp.abs(x).max(axis=1)
    # Not 127.5 for whole numbers: the largest one would be a tie, and fall to one side here and the other there.
    scale = jnp.where(largest > 0, largest, 1) / LARGEST[kind]
    return rounded(x / scale[:, None], jnp.dtype(kind)), scale


def quantized_linear(
    x: Float[Array, "T K"], weight: Quantized, num_in: int, dtype: DTypeLike
) -> Float[Array, "T *out"]:
    """Each token times the weight [*out, *in], of which the last `num_in` axes are summed over (of one with `out`, the
    last)."""
    num_in = num_in if weight.out is None else 1
    out = weight.out or weight.shape[: weight.ndim - num_in]
    shape = (math.prod(out), -1)
    if not weight.per_channel(num_in):
        product = _dot(x, dequantized(weight, x.dtype).reshape(shape), jnp.float32)
    else:
        values = numbers(weight).reshape(shape)
        scale = jnp.asarray(weight.scale).reshape(-1)
        if weight.activations:
            tokens, each = rounded_tokens(x, weight.kind)
            summed = _dot(tokens, values, jnp.int32 if weight.kind == "int8" else jnp.float32)
            product = summed.astype(jnp.float32) * scale * each[:, None]
        else:
            product = _dot(x, values.astype(x.dtype), jnp.float32) * scale
    return product.reshape(-1, *out).astype(dtype)


def quantized_grouped(x: Float[Array, "R I"], weight: Quantized, group_sizes: Int[Array, "E"]) -> Float[Array, "R O"]:
    """As Backend.grouped_linear, with a weight [E, O, I]."""
    if not weight.per_channel(1):
        return _ragged(x, dequantized(weight, x.dtype), group_sizes, jnp.float32).astype(x.dtype)
    values = numbers(weight)
    expert = jnp.searchsorted(jnp.cumsum(group_sizes), jnp.arange(x.shape[0]), side="right")
    scale = jnp.asarray(weight.scale)[jnp.minimum(expert, len(group_sizes) - 1), :, 0]
    if weight.activations:
        tokens, each = rounded_tokens(x, weight.kind)
        summed = _ragged(tokens, values, group_sizes, jnp.int32 if weight.kind == "int8" else jnp.float32)
        return (summed.astype(jnp.float32) * scale * each[:, None]).astype(x.dtype)
    return (_ragged(x, values.astype(x.dtype), group_sizes, jnp.float32) * scale).astype(x.dtype)


def quantized_rows(table: Quantized, ids: Int[Array, "T"]) -> Float[Array, "T D"]:
    """Rows of a [V, D] table."""
    scale = table.scale if table.scale.shape[0] == 1 else table.scale[ids]
    taken = Quantized(jnp.asarray(table.values)[ids], scale, table.kind, table.dtype)
    return dequantized(taken)


def _dot(x: Num[Array, "T K"], values: Num[Array, "N K"], sums: DTypeLike) -> Num[Array, "T N"]:
    return jax.lax.dot_general(
        x, values, (((1,), (1,)), ((), ())), precision="highest", preferred_element_type=jnp.dtype(sums)
    )


def _ragged(
    x: Num[Array, "R I"], values: Num[Array, "E O I"], group_sizes: Int[Array, "E"], sums: DTypeLike
) -> Num[Array, "R O"]:
    dimensions = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((1,), (2,)), ((), ())), lhs_ragged_dimensions=(0,), rhs_group_dimensions=(0,)
    )
    return jax.lax.ragged_dot_general(
        x, values, group_sizes, dimensions, precision="highest", preferred_element_type=jnp.dtype(sums)
    )
