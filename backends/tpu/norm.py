"""RMSNorm and rounding to 8 bits in one pass over memory, on a TPU: what 8-bit products take as their activations.

XLA makes three passes of it, each bound by vector work. Here a row is read twice from VMEM and once from HBM: first its
squares are added up and its largest product with the norm's scale is found, then those products are rounded. The root
of the squares divides all of a row alike, so it goes into the row's scale and touches no number.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from ..errors import UnsupportedError
from ..kernel_work import KernelWork
from ..token_scales import LARGEST
from .block_sizes import block_sizes
from .cache import LANES

_ROWS = 64
"""Rows whose sums are in registers at once; two tiles of 8-bit numbers."""
_COLUMNS = 32
"""Columns of 128 lanes in a turn of the inner loops: with fewer, starting a turn takes a quarter of the time."""
_MAGIC = 1.5 * 2.0**23
"""fp32 numbers near it are integers: adding it rounds to the nearest, of two the even one."""
_LEAST = 1e-30
"""A row's largest number at least: its reciprocal times 448 is still a number, for rows of zeros."""


def rms_norm_quantised(
    x: Float[Array, "T D"],
    scale: Float[Array, "D"],
    *,
    epsilon: float,
    generation: str,
    dtype: DTypeLike = "int8",
    interpret: Any = False,
) -> tuple[Num[Array, "T D"], Float[Array, "T"]]:
    """`x / sqrt(mean(x ** 2) + epsilon) * scale` as 8-bit numbers, and what those of each row are to be multiplied by.

    Raises:
        UnsupportedError: a width or type that the kernel does not have.
    """
    num_rows, width = x.shape
    name = jnp.dtype(dtype).name
    if name not in LARGEST:
        raise UnsupportedError(f"TPU norm: rounding to {name}, supported are {', '.join(LARGEST)}")
    if width % LANES:
        raise UnsupportedError(f"TPU norm: width {width}, supported are multiples of {LANES}")
    rows = tile_rows(num_rows, width, x.dtype, generation)
    padded = -(-num_rows // rows) * rows
    numbers, scales = pl.pallas_call(
        partial(_kernel, epsilon=epsilon, name=name),
        out_shape=[jax.ShapeDtypeStruct((padded, width), name), jax.ShapeDtypeStruct((padded, 1), jnp.float32)],
        grid=(padded // rows,),
        in_specs=[pl.BlockSpec((rows, width), lambda i: (i, 0)), pl.BlockSpec((1, width), lambda i: (0, 0))],
        out_specs=[pl.BlockSpec((rows, width), lambda i: (i, 0)), pl.BlockSpec((rows, 1), lambda i: (i, 0))],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=block_sizes("norm", generation)["vmem_mib"] << 20
        ),
        interpret=interpret,
        name="norm_quantised",
    )(jnp.pad(x, ((0, padded - num_rows), (0, 0))), scale.astype(jnp.float32)[None])
    return numbers[:num_rows], scales[:num_rows, 0]


def tile_rows(num_rows: int, width: int, dtype: DTypeLike, generation: str) -> int:
    """Rows of a step of the grid: two of them, in and out, fit into VMEM.

    Raises:
        UnsupportedError: not even the fewest fit.
    """
    sizes = block_sizes("norm", generation)
    rows = min(sizes["rows"], -(-num_rows // _ROWS) * _ROWS)
    each = 2 * (width * (jnp.dtype(dtype).itemsize + 1) + LANES * 4)
    while rows * each > 0.85 * (sizes["vmem_mib"] << 20):
        if rows == _ROWS:
            raise UnsupportedError(f"TPU norm: width {width}, supported is what fits {sizes['vmem_mib']} MiB of VMEM")
        rows = max(_ROWS, rows // 2 // _ROWS * _ROWS)
    return rows


def norm_work(num_rows: int, width: int, generation: str, dtype: DTypeLike = "bfloat16") -> KernelWork:
    """The work of rms_norm_quantised. The compiler knows the trips of all loops but that over rows of a tile."""
    rows = tile_rows(num_rows, width, dtype, generation)
    steps = -(-num_rows // rows) / (2 if generation == "v5p" else 1)  # both cores of a v5p have half of them
    groups = rows // _ROWS
    each = width * (jnp.dtype(dtype).itemsize + 1) + LANES * 4  # a row's scale takes a tile's lanes
    return KernelWork(
        trips={int(steps > 1): groups} if groups > 1 else {}, hbm_bytes=num_rows * each + width * 4, flops=0
    )


def _kernel(x_ref: Any, w_ref: Any, numbers: Any, scales: Any, *, epsilon: float, name: str) -> None:
    rows, width = x_ref.shape
    largest = LARGEST[name]
    at_once = math.gcd(width // LANES, _COLUMNS)

    def of_lanes(body: Any, carry: Any) -> Any:
        """`carry = body(lanes, carry)` for each 128 lanes."""

        def some(at: Any, carry: Any) -> Any:
            for i in range(at_once):
                carry = body(pl.ds(pl.multiple_of((at * at_once + i) * LANES, LANES), LANES), carry)
            return carry

        return jax.lax.fori_loop(0, width // LANES // at_once, some, carry)

    def of_rows(at: Any, carry: Any) -> Any:
        own = pl.ds(pl.multiple_of(at * _ROWS, _ROWS), _ROWS)

        def measure(lanes: Any, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            x = x_ref[own, lanes].astype(jnp.float32)
            return found[0] + x * x, jnp.maximum(found[1], jnp.abs(x * w_ref[:, lanes]))

        zeros = jnp.zeros((_ROWS, LANES), jnp.float32)
        squares, most = of_lanes(measure, (zeros, zeros))
        mean = jnp.sum(squares, axis=1, keepdims=True) / width
        top = jnp.maximum(jnp.max(most, axis=1, keepdims=True), _LEAST)
        scales[own] = jax.lax.rsqrt(mean + epsilon) * top * (1 / largest)
        factor = jnp.broadcast_to(largest / top, (_ROWS, LANES))

        def write(lanes: Any, carry: Any) -> Any:
            y = x_ref[own, lanes].astype(jnp.float32) * w_ref[:, lanes] * factor
            if name == "int8":
                bits = jax.lax.bitcast_convert_type(y + _MAGIC, jnp.int32)
                numbers[own, lanes] = (bits - 0x4B400000).astype(jnp.int8)
            else:
                numbers[own, lanes] = jnp.clip(y, -largest, largest).astype(name)
            return carry

        of_lanes(write, 0)
        return carry

    jax.lax.fori_loop(0, rows // _ROWS, of_rows, 0)
