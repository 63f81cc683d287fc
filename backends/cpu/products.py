"""Products with packed weights, as custom calls: which kernel takes what."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from ..quantized import round_tokens
from . import matmul
from .groups import Groups
from .jit import round_up
from .packing import PackedInt8, PackedMatrix
from .packing_groups import PackedGroups
from .tile import SHORT, WORD, Precision, multiplies_bf16, multiplies_bytes
from .tokens import byte_tokens


def kind_of(weight: PackedMatrix) -> tuple[Precision, bool, Groups | None]:
    """What has to be the same of matrices that one call multiplies."""
    return _given(weight), isinstance(weight, PackedInt8) and weight.activations, _groups(weight)


def linear(
    x: Float[Array, "T K"], weights: Sequence[PackedMatrix], dtype: DTypeLike, count: Int[Array, ""]
) -> tuple[Float[Array, "T N"], ...]:
    """x times each of the matrices, which are of one kind, for the first `count` rows; zeros behind them."""
    products: list[Array] = []
    for first in range(0, len(weights), matmul.MOST_MATRICES):
        products += _linear(x, weights[first : first + matmul.MOST_MATRICES], dtype, count)
    return tuple(products)


def _linear(
    x: Float[Array, "T K"], weights: Sequence[PackedMatrix], dtype: DTypeLike, count: Int[Array, ""]
) -> list[Float[Array, "T N"]]:
    given = _given(weights[0])
    operands = [operand for weight in weights for operand in _operands(weight)]
    results = [jax.ShapeDtypeStruct((x.shape[0], math.prod(weight.out)), dtype) for weight in weights]
    if given == "i8":  # rounds by itself, and asks for memory
        results += [
            jax.ShapeDtypeStruct((x.shape[0], round_up(x.shape[1], WORD)), jnp.uint8),
            jax.ShapeDtypeStruct((x.shape[0],), jnp.float32),
        ]
        name = f"linear_{x.dtype.name}_i8"
        return _call(weights[0], name, results, x, count, *operands)[: len(weights)]
    tokens, each = _taken(x, weights[0])
    if each is None:
        return _call(weights[0], f"linear_{given}", results, tokens, count, *operands)
    wide = [jax.ShapeDtypeStruct(result.shape, jnp.float32) for result in results]
    products = _call(weights[0], f"linear_{given}", wide, tokens, count, *operands)
    return [(product * each[:, None]).astype(dtype) for product in products]


def grouped(
    x: Float[Array, "R K"], weight: PackedMatrix, dtype: DTypeLike, group_sizes: Int[Array, "E"]
) -> Float[Array, "R N"]:
    """Consecutive groups of rows times one matrix each, zeros behind the last one."""
    given = _given(weight)
    panels, number, *scales = _operands(weight)
    operands = panels, number, group_sizes, *scales
    result = jax.ShapeDtypeStruct((x.shape[0], math.prod(weight.out)), dtype)
    if given == "i8":
        tokens, each = byte_tokens(x, jnp.int32(x.shape[0]))
        return _call(weight, "grouped_i8", [result], tokens, *operands, each)[0]
    tokens, each = _taken(x, weight)
    if each is None:
        return _call(weight, f"grouped_{given}", [result], tokens, *operands)[0]
    wide = jax.ShapeDtypeStruct(result.shape, jnp.float32)
    return (_call(weight, f"grouped_{given}", [wide], tokens, *operands)[0] * each[:, None]).astype(dtype)


def _groups(weight: PackedMatrix) -> Groups | None:
    return weight.groups if isinstance(weight, PackedGroups) else None


def _given(weight: PackedMatrix) -> Precision:
    """The kernels of a weight; of one in groups, those that take it expanded."""
    if not isinstance(weight, PackedInt8):
        return SHORT[str(weight.dtype)]
    return "i8" if weight.activations and multiplies_bytes() else "w8"


def _operands(weight: PackedMatrix) -> list[Array]:
    scales = [weight.scales] if isinstance(weight, PackedInt8) else []
    return [weight.panels, weight.number, *scales]


def _taken(x: Float[Array, "T K"], weight: PackedMatrix) -> tuple[Num[Array, "T K_whole"], Float[Array, "T"] | None]:
    """x as the kernels of this weight take it, but for those of bytes; and what products are to be multiplied with."""
    each = None
    if isinstance(weight, PackedInt8) and weight.activations:
        tokens = round_tokens(x, "int8")
        x, each = tokens.numbers, tokens.scale
    pairs = not isinstance(weight, PackedInt8) and str(weight.dtype) == "bfloat16" and multiplies_bf16()
    x = x.astype(jnp.bfloat16 if pairs else jnp.float32)
    if not isinstance(weight, PackedGroups):
        _, _, words, _, group = weight.panels.shape
        x = jnp.pad(x, ((0, 0), (0, words * group - x.shape[1])))
    return x, each


def _call(weight: PackedMatrix, name: str, results: list[jax.ShapeDtypeStruct], *operands: Array) -> list[Array]:
    target = matmul.targets(_given(weight), _groups(weight))[f"{name}_{SHORT[jnp.dtype(results[0].dtype).name]}"]
    return list(jax.ffi.ffi_call(target, results)(*operands))
