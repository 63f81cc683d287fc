"""Weights as small numbers times scales, and products with them, in plain jax.numpy.

`number * scale`, or `number * scale + minimum`, with a scale for each output channel, or for each group of what a
product sums over. Weights stay packed in memory: what a product needs of them is expanded in the same program, a
layer's matrix or one expert's at a time. Where activations are rounded too (W8A8), each token has a scale of its own,
found when it comes: int8 products are summed up as whole numbers, so that the order does not matter.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, no_type_check

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num, UInt8

from .rounded_tokens import RoundedTokens
from .token_scales import LARGEST, rounded

TABLES: Final[Mapping[str, tuple[float, ...]]] = {
    "nf4": (
        -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0,
        0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
    ),
    "fp4": (
        0.0, 0.0052083335, 0.6666667, 1.0, 0.33333334, 0.5, 0.16666667, 0.25,
        0.0, -0.0052083335, -0.6666667, -1.0, -0.33333334, -0.5, -0.16666667, -0.25,
    ),
}  # fmt: skip
"""What numbers of bitsandbytes' kinds mean, to the last bit of fp32: quantiles of a normal distribution, and floats."""
HALF_BYTES: Final = ("int4", "uint4", "float4_e2m1fn", *TABLES)
"""Kinds of numbers that lie two in a byte."""
_TILE: Final = 64
"""Rows of an expert that are multiplied at once: an expert of few rows costs as much as one of so many."""


@no_type_check  # JAX rebuilds it around tracers, shapes and shardings
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantized:
    """A weight [*stack, *out, *in] that stands for `numbers * scale`, plus `minimum` where there is one.

    Args:
        values: in the weight's shape; of HALF_BYTES two in a byte along the last axis, the even one in its low half:
            "int4" with 8 added, "uint4" as it is, "float4_e2m1fn" by its bits, those of TABLES by their places there.
        scale: of as many axes: each has the weight's length divided by that of a group, 1 where all share it. Floats,
            or bytes: exponents of two with 127 added (E8M0 of OCP Microscaling).
        kind: "int8", "uint8", "int4", "uint4", "float4_e2m1fn", "float8_e4m3fn" or one of TABLES.
        dtype: of the weight that it stands for, and so of embeddings that are read from it.
        activations: whether what is multiplied with it is rounded to the same type.
        out: lengths of the output's axes, where the weight has them as one, and those of the input too, since a
            backend likes it so; None: as the shape says.
        minimum: what a number 0 stands for, as `scale`; None: 0.
    """

    values: Num[Array, "..."]
    scale: Num[Array, "..."]
    kind: str = field(metadata={"static": True})
    dtype: jnp.dtype = field(metadata={"static": True})
    activations: bool = field(default=False, metadata={"static": True})
    out: tuple[int, ...] | None = field(default=None, metadata={"static": True})
    minimum: Float[Array, "..."] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        packed = 2 if self.kind in HALF_BYTES else 1
        return (*self.values.shape[:-1], packed * self.values.shape[-1])

    @property
    def ndim(self) -> int:
        return len(self.values.shape)

    @property
    def parts(self) -> dict[str, Any]:
        """The arrays that there are, by the names of their fields."""
        found = {"values": self.values, "scale": self.scale, "minimum": self.minimum}
        return {name: leaf for name, leaf in found.items() if leaf is not None}

    @property
    def nbytes(self) -> int:
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in self.parts.values())

    def per_channel(self, num_in: int) -> bool:
        """Whether each output, an index of all but the last `num_in` axes, has one scale and nothing added. Numbers of
        TABLES are not multiplied so: bfloat16 would round them before their scale comes."""
        one = self.minimum is None and math.prod(self.scale.shape[self.ndim - num_in :]) == 1
        return one and self.kind not in TABLES


@dataclass(frozen=True)
class Rounding:
    """How a weight [*stack, *out, *in] is held as Quantized.

    Args:
        kind, activations: of Quantized.
        groups: how many groups with a scale each axis of `in` has.
        scales, minima: types of scales and of minima; None: there are no minima.
    """

    kind: str
    groups: tuple[int, ...]
    activations: bool = False
    scales: str = "float32"
    minima: str | None = None

    @classmethod
    def of(cls, weight: Quantized, num_in: int) -> "Rounding":
        minima = None if weight.minimum is None else weight.minimum.dtype.name
        groups = weight.scale.shape[weight.ndim - num_in :]
        return cls(weight.kind, groups, weight.activations, weight.scale.dtype.name, minima)

    def parts(self, shape: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of the arrays of a weight of this shape, by their names in Quantized."""
        half = self.kind in HALF_BYTES
        values = (*shape[:-1], shape[-1] // 2) if half else shape
        each = (*shape[: len(shape) - len(self.groups)], *self.groups)
        found = {
            "values": jax.ShapeDtypeStruct(values, jnp.dtype("uint8" if half else self.kind)),
            "scale": jax.ShapeDtypeStruct(each, jnp.dtype(self.scales)),
        }
        return found if self.minima is None else found | {"minimum": jax.ShapeDtypeStruct(each, jnp.dtype(self.minima))}

    def held(self, parts: Mapping[str, Any], dtype: DTypeLike) -> Any:
        """Quantized of whatever stands for its arrays."""
        return Quantized(**parts, kind=self.kind, dtype=jnp.dtype(dtype), activations=self.activations)


def as_matrices(weight: Quantized, num_stacked: int, num_in: int) -> Quantized:
    """A weight [*stack, *out, *in] as [*stack, out, in], with `out` to tell."""
    end = weight.ndim - num_in
    out = weight.shape[num_stacked:end]

    def flat(leaf: Num[Array, "..."]) -> Num[Array, "..."]:
        return leaf.reshape(*leaf.shape[:num_stacked], math.prod(leaf.shape[num_stacked:end]), -1)

    return replace(weight, **{name: flat(leaf) for name, leaf in weight.parts.items()}, out=out)


def is_quantized(leaf: Any) -> bool:
    return isinstance(leaf, Quantized)


def bytes_per_weight(weights: Any) -> float:
    """What a number of a tree of weights takes, with its part of scales."""
    leaves = jax.tree.leaves(weights, is_leaf=is_quantized)
    return sum(leaf.nbytes for leaf in leaves) / sum(math.prod(leaf.shape) for leaf in leaves)


def numbers(weight: Quantized) -> Num[Array, "..."]:
    """The numbers, one an entry; of TABLES what they mean, in fp32. Those of "float4_e2m1fn" are whole: twice the
    floats, with scales of half the size."""
    values = jnp.asarray(weight.values)
    if weight.kind not in HALF_BYTES:
        return values
    halves = jnp.stack([values & 15, values >> 4], axis=-1).astype(jnp.int8).reshape(*values.shape[:-1], -1)
    if weight.kind == "float4_e2m1fn":
        # 0, 1, 2, 3, 4, 6, 8, 12 without a table to look in, which processors do one number at a time.
        size = halves & 7
        size += jnp.maximum(size - 4, 0) + jnp.where(size == 7, 2, 0).astype(jnp.int8)
        return jnp.where(halves >= 8, -size, size)
    if weight.kind in TABLES:
        return _meant(halves, TABLES[weight.kind])
    return halves - 8 if weight.kind == "int4" else halves


def _meant(places: Int[Array, "..."], table: Sequence[float]) -> Float[Array, "..."]:
    """Entries of a table, chosen bit by bit: processors look in one for a number at a time."""
    entries: list[Any] = [jnp.float32(value) for value in table]
    bit = 1
    while len(entries) > 1:
        odd = (places & bit) != 0
        entries = [jnp.where(odd, high, low) for low, high in zip(entries[::2], entries[1::2], strict=True)]
        bit *= 2
    return entries[0]


def scales(weight: Quantized) -> Float[Array, "..."]:
    """The scales of `numbers`, in fp32; powers of two that are too small for its normal numbers are 0."""
    scale = jnp.asarray(weight.scale)
    if scale.dtype == jnp.uint8:
        scale = jax.lax.bitcast_convert_type(scale.astype(jnp.int32) << 23, jnp.float32)
    return scale.astype(jnp.float32) * (0.5 if weight.kind == "float4_e2m1fn" else 1)


def packed(values: Int[Array, "..."]) -> UInt8[Array, "..."]:
    """Numbers from -8 to 7 as "int4" holds them; see Quantized."""
    pairs = (values + 8).astype(jnp.uint8).reshape(*values.shape[:-1], -1, 2)
    return pairs[..., 0] | (pairs[..., 1] << 4)


def dequantized(weight: Quantized, dtype: DTypeLike | None = None) -> Float[Array, "..."]:
    """The weight that it stands for; in `dtype`, by default its own."""
    values, scale = numbers(weight), scales(weight)
    spread: list[int] = []
    for size, count in zip(values.shape, scale.shape, strict=True):
        spread += [count, size // count]
    within = tuple(range(1, len(spread), 2))
    grouped = values.reshape(spread).astype(jnp.float32) * jnp.expand_dims(scale, within)
    if weight.minimum is not None:
        grouped += jnp.expand_dims(jnp.asarray(weight.minimum).astype(jnp.float32), within)
    return grouped.reshape(values.shape).astype(dtype or weight.dtype)


def round_tokens(x: Float[Array, "T K"], kind: str) -> RoundedTokens:
    """Each token as numbers of a type, and its scale."""
    wide = x.astype(jnp.float32)
    largest = jnp.abs(wide).max(axis=1)
    # Not 127.5 for whole numbers: the largest one would be a tie, and fall to one side here and the other there.
    scale = jnp.where(largest > 0, largest, 1) / LARGEST[kind]
    return RoundedTokens(rounded(wide / scale[:, None], jnp.dtype(kind)), scale, x.dtype)


def shared_rounding(weights: Sequence[Any]) -> str | None:
    """The type to which all of these weights [*out, in] round what they are multiplied with; None where they do not, or
    each to another."""
    kinds = {leaf.kind if is_quantized(leaf) and leaf.activations and leaf.per_channel(1) else None for leaf in weights}
    return kinds.pop() if len(kinds) == 1 else None


def quantized_linear(
    x: Float[Array, "T K"] | RoundedTokens,
    weight: Quantized,
    num_in: int,
    dtype: DTypeLike,
    by: Callable[[Array, str], RoundedTokens] = round_tokens,
) -> Float[Array, "T *out"]:
    """Each token times the weight [*out, *in], of which the last `num_in` axes are summed over (of one with `out`, the
    last). `by` rounds tokens to a type where the weight asks for that."""
    num_in = num_in if weight.out is None else 1
    out = weight.out or weight.shape[: weight.ndim - num_in]
    shape = (math.prod(out), -1)
    if isinstance(x, RoundedTokens) or (weight.activations and weight.per_channel(num_in)):
        x = x if isinstance(x, RoundedTokens) else by(x, weight.kind)
        sums = _dot(x.numbers, numbers(weight).reshape(shape), jnp.int32 if weight.kind == "int8" else jnp.float32)
        product = sums.astype(jnp.float32) * scales(weight).reshape(-1) * x.scale[:, None]
    elif weight.per_channel(num_in):
        values = numbers(weight).reshape(shape).astype(x.dtype)
        product = _dot(x, values, jnp.float32) * scales(weight).reshape(-1)
    else:
        product = _dot(x, dequantized(weight, x.dtype).reshape(shape), jnp.float32)
    return product.reshape(-1, *out).astype(dtype)


def quantized_grouped(x: Float[Array, "R I"], weight: Quantized, group_sizes: Int[Array, "E"]) -> Float[Array, "R O"]:
    """As Backend.grouped_linear, with a weight [E, O, I]."""
    if not weight.per_channel(1):
        return _one_expert_at_a_time(x, weight, group_sizes)
    values = numbers(weight)
    expert = jnp.searchsorted(jnp.cumsum(group_sizes), jnp.arange(x.shape[0]), side="right")
    scale = scales(weight)[jnp.minimum(expert, len(group_sizes) - 1), :, 0]
    if weight.activations:
        tokens = round_tokens(x, weight.kind)
        summed = _ragged(tokens.numbers, values, group_sizes, jnp.int32 if weight.kind == "int8" else jnp.float32)
        return (summed.astype(jnp.float32) * scale * tokens.scale[:, None]).astype(x.dtype)
    return (_ragged(x, values.astype(x.dtype), group_sizes, jnp.float32) * scale).astype(x.dtype)


def quantized_rows(table: Quantized, ids: Int[Array, "T"]) -> Float[Array, "T D"]:
    """Rows of a [V, D] table."""
    taken = {name: leaf if leaf.shape[0] == 1 else jnp.asarray(leaf)[ids] for name, leaf in table.parts.items()}
    return dequantized(replace(table, **taken))


def _one_expert_at_a_time(
    x: Float[Array, "R I"], weight: Quantized, group_sizes: Int[Array, "E"]
) -> Float[Array, "R O"]:
    """Expands the matrix of each expert that has rows, once, and touches no other's. Rows that a tile takes from the
    expert behind it are written again by that one."""
    num_rows, (num_experts, num_out, _) = x.shape[0], weight.shape
    tile = min(_TILE, num_rows)
    starts = jnp.cumsum(group_sizes) - group_sizes
    used = jnp.argsort(group_sizes == 0)  # in order, those without rows last
    padded = jnp.pad(x, ((0, tile), (0, 0)))

    def one(number: Int[Array, ""], out: Float[Array, "P O"]) -> Float[Array, "P O"]:
        expert = used[number]
        matrix = dequantized(jax.tree.map(lambda leaf: leaf[expert], weight), x.dtype)

        def rows(turn: Int[Array, ""], out: Float[Array, "P O"]) -> Float[Array, "P O"]:
            start = starts[expert] + turn * tile
            product = _dot(jax.lax.dynamic_slice_in_dim(padded, start, tile), matrix, jnp.float32)
            return jax.lax.dynamic_update_slice_in_dim(out, product.astype(x.dtype), start, axis=0)

        return jax.lax.fori_loop(0, -(-group_sizes[expert] // tile), rows, out)

    empty = jnp.zeros((num_rows + tile, num_out), x.dtype)
    return jax.lax.fori_loop(0, num_experts - (group_sizes == 0).sum(), one, empty)[:num_rows]


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
