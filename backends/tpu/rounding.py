"""Rounding rows to 8 bits in one pass over memory, on a TPU: what 8-bit products take as their activations.

XLA makes two or three passes of it, each bound by vector work or, where rows are few, by what an operation costs
however small it is. Here a row is read from HBM once and from VMEM twice: first its largest number is found, then all
are divided and rounded. What is rounded may be the row itself, RMSNorm of it, or the gated product of two rows. The
root of a norm's squares divides all of a row alike, so it goes into the row's scale and touches no number.
"""

import math
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..errors import UnsupportedError
from ..kernel_work import KernelWork
from ..rounded_tokens import RoundedTokens
from ..token_scales import LARGEST
from .block_sizes import block_sizes
from .cache import LANES

Kind = Literal["rows", "norm", "gate"]
"""What is rounded: rows, RMSNorm of rows, or `silu(gate) * up`. Also the name of the kernel, with "_rounded" behind."""

_ROWS = 64
"""Rows whose sums are in registers at once; two tiles of 8-bit numbers."""
_FEWEST = 16
"""Rows of the smallest step: a tile of bf16."""
_COLUMNS = 32
"""Columns of 128 lanes in a turn of the inner loops: with fewer, starting a turn takes a quarter of the time."""
_MAGIC = 1.5 * 2.0**23
"""fp32 numbers near it are integers: adding it rounds to the nearest, of two the even one."""
_LEAST = 1e-30
"""A row's largest number at least: its reciprocal times 448 is still a number, for rows of zeros."""


def round_rows(
    x: Float[Array, "T K"], *, generation: str, dtype: DTypeLike = "int8", interpret: Any = False
) -> RoundedTokens:
    """Each row as 8-bit numbers, and what they are to be multiplied by.

    Raises:
        UnsupportedError: a width or type that the kernel does not have.
    """
    return _rounded("rows", (x,), 0.0, generation, dtype, interpret)


def round_norm(
    x: Float[Array, "T D"],
    scale: Float[Array, "D"],
    *,
    epsilon: float,
    generation: str,
    dtype: DTypeLike = "int8",
    interpret: Any = False,
) -> RoundedTokens:
    """As round_rows, of `x / sqrt(mean(x ** 2) + epsilon) * scale`."""
    return _rounded("norm", (x, scale.astype(jnp.float32)[None]), epsilon, generation, dtype, interpret)


def round_gate(
    gate: Float[Array, "T F"],
    up: Float[Array, "T F"],
    *,
    generation: str,
    dtype: DTypeLike = "int8",
    interpret: Any = False,
) -> RoundedTokens:
    """As round_rows, of `silu(gate) * up`."""
    return _rounded("gate", (gate, up), 0.0, generation, dtype, interpret)


def _rounded(
    kind: Kind, operands: tuple[Array, ...], epsilon: float, generation: str, dtype: DTypeLike, interpret: Any
) -> RoundedTokens:
    """`operands`: rows, and the rows or, of a norm, the one row that they are multiplied with."""
    x = operands[0]
    num_rows, width = x.shape
    name = jnp.dtype(dtype).name
    if name not in LARGEST:
        raise UnsupportedError(f"TPU rounding to {name}, supported are {', '.join(LARGEST)}")
    if width % LANES:
        raise UnsupportedError(f"TPU rounding: width {width}, supported are multiples of {LANES}")
    rows, at_once = tile_rows(kind, num_rows, width, x.dtype, generation)
    padded = -(-num_rows // rows) * rows
    own, shared = pl.BlockSpec((rows, width), lambda i: (i, 0)), pl.BlockSpec((1, width), lambda i: (0, 0))
    specs = [own, shared] if kind == "norm" else [own] * len(operands)
    if padded > num_rows:
        pads = [((0, padded - num_rows if spec is own else 0), (0, 0)) for spec in specs]
        operands = tuple(map(jnp.pad, operands, pads))
    numbers, scale = pl.pallas_call(
        partial(_kernel, kind=kind, epsilon=epsilon, name=name, at_once=at_once),
        out_shape=[
            jax.ShapeDtypeStruct((padded, width), name),
            jax.ShapeDtypeStruct((padded // rows, 1, rows), jnp.float32),
        ],
        grid=(padded // rows,),
        in_specs=specs,
        out_specs=[own, pl.BlockSpec((1, 1, rows), lambda i: (i, 0, 0))],
        scratch_shapes=[pltpu.VMEM((rows, LANES), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=block_sizes("rounding", generation)["vmem_mib"] << 20
        ),
        interpret=interpret,
        name=f"{kind}_rounded",
    )(*operands)
    return RoundedTokens(numbers[:num_rows], scale.reshape(-1)[:num_rows], x.dtype)


def tile_rows(kind: Kind, num_rows: int, width: int, dtype: DTypeLike, generation: str) -> tuple[int, int]:
    """Rows of a step of the grid, two of which fit into VMEM, and of those the rows whose sums are found together.

    Raises:
        UnsupportedError: not even the fewest fit.
    """
    sizes = block_sizes("rounding", generation)
    at_once = min(_ROWS, -(-num_rows // _FEWEST) * _FEWEST)
    rows = min(sizes["rows"], -(-num_rows // at_once) * at_once)
    each = 2 * _row_bytes(kind, width, dtype)
    while rows * each > 0.85 * (sizes["vmem_mib"] << 20):
        if rows == at_once:
            most = sizes["vmem_mib"]
            raise UnsupportedError(f"TPU rounding: width {width}, supported is what fits {most} MiB of VMEM")
        rows = max(at_once, rows // 2 // at_once * at_once)
    return rows, at_once


def rounding_work(kind: Kind, num_rows: int, width: int, generation: str, dtype: DTypeLike = "bfloat16") -> KernelWork:
    """The work of one call. The compiler knows the trips of all loops but that over rows of a tile."""
    rows, at_once = tile_rows(kind, num_rows, width, dtype, generation)
    steps = -(-num_rows // rows) / (2 if generation == "v5p" else 1)  # both cores of a v5p have half of them
    groups = rows // at_once
    moved = num_rows * _row_bytes(kind, width, dtype) + (4 * width if kind == "norm" else 0)
    return KernelWork(trips={int(steps > 1): groups} if groups > 1 else {}, hbm_bytes=moved, flops=0)


def _row_bytes(kind: Kind, width: int, dtype: DTypeLike) -> int:
    """Of a row that comes and goes, with its scale."""
    read = 2 if kind == "gate" else 1
    return width * (read * jnp.dtype(dtype).itemsize + 1) + 4


def _kernel(*refs: Any, kind: Kind, epsilon: float, name: str, at_once: int) -> None:
    *operands, numbers, scales, found = refs
    rows, width = operands[0].shape
    largest = LARGEST[name]
    columns = math.gcd(width // LANES, _COLUMNS)

    def of_lanes(body: Any, carry: Any) -> Any:
        """`carry = body(lanes, carry)` for each 128 lanes."""

        def some(at: Any, carry: Any) -> Any:
            for i in range(columns):
                carry = body(pl.ds(pl.multiple_of((at * columns + i) * LANES, LANES), LANES), carry)
            return carry

        return jax.lax.fori_loop(0, width // LANES // columns, some, carry)

    def of_rows(at: Any, carry: Any) -> Any:
        own = pl.ds(pl.multiple_of(at * at_once, at_once), at_once)

        def load(lanes: Any) -> tuple[jax.Array, jax.Array]:
            """Some columns of the rows, and of what is rounded."""
            x = operands[0][own, lanes].astype(jnp.float32)
            if kind == "norm":
                return x, x * operands[1][:, lanes]
            return x, x if kind == "rows" else jax.nn.silu(x) * operands[1][own, lanes].astype(jnp.float32)

        def measure(lanes: Any, so_far: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            x, y = load(lanes)
            squares = so_far[0] + x * x if kind == "norm" else so_far[0]
            return squares, jnp.maximum(so_far[1], jnp.abs(y))

        zeros = jnp.zeros((at_once, LANES), jnp.float32)
        squares, most = of_lanes(measure, (zeros, zeros))
        top = jnp.maximum(jnp.max(most, axis=1, keepdims=True), _LEAST)
        scale = top * (1 / largest)
        if kind == "norm":
            scale *= jax.lax.rsqrt(jnp.sum(squares, axis=1, keepdims=True) / width + epsilon)
        found[own] = jnp.broadcast_to(scale, (at_once, LANES))
        factor = jnp.broadcast_to(largest / top, (at_once, LANES))

        def write(lanes: Any, carry: Any) -> Any:
            y = load(lanes)[1] * factor
            if name == "int8":
                bits = jax.lax.bitcast_convert_type(y + _MAGIC, jnp.int32)
                numbers[own, lanes] = (bits - 0x4B400000).astype(jnp.int8)
            else:
                numbers[own, lanes] = jnp.clip(y, -largest, largest).astype(name)
            return carry

        of_lanes(write, 0)
        return carry

    jax.lax.fori_loop(0, rows // at_once, of_rows, 0)
    # A lane each: what XLA multiplies products by as they are, where a column would be turned around first.
    scales[0] = found[...].T[:1]
