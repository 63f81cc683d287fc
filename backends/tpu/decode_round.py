"""What one new token of each row is to a cache of int8 with scales of tokens, by one kernel: queries in two parts, new
keys and values, all rounded and as the decode kernel moves them.

XLA makes a dozen operations of it (decode_pack.py, which this agrees with), each of which costs some 2,100 cycles
however few rows there are.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int8, UInt32

from ..kernel_work import KernelWork
from ..token_scales import LARGEST, LEAST
from .cache import LANES
from .decode_shape import DecodeShape

_TOKENS = 64
"""Tokens of a step of the grid, at most."""


def rounds(shape: DecodeShape, num_tokens: int) -> bool:
    """Whether the kernel has this case: matrix units that take int8, heads of whole registers, one query a row."""
    alone = shape.split and shape.matmul_dtype == "int8" and shape.max_queries == 1
    return alone and shape.head_dim % LANES == 0 and num_tokens % min(num_tokens, _TOKENS) == 0


def round_new(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    shape: DecodeShape,
    factor: float,
    *,
    interpret: Any = False,
) -> tuple[Int8[Array, "T chunks rows width"], Float[Array, "T"], UInt32[Array, "T 1 2 lanes"], Float[Array, "2 T"]]:
    """Queries times `factor`, as pack_queries returns them, with their scale; keys and values as pack_new does, with
    theirs."""
    num_tokens, heads, width = q.shape
    at_once = min(num_tokens, _TOKENS)
    steps, lanes = num_tokens // at_once, shape.lanes
    packed = (shape.num_chunks, shape.matmul_rows, shape.chunk_lanes)
    new = pl.BlockSpec((at_once, lanes), lambda i: (i, 0))
    queries, q_scale, words, scales = pl.pallas_call(
        partial(_kernel, shape=shape, factor=factor),
        out_shape=[
            jax.ShapeDtypeStruct((num_tokens, *packed), jnp.int8),
            jax.ShapeDtypeStruct((steps, 1, at_once), jnp.float32),
            jax.ShapeDtypeStruct((num_tokens, 1, 2, lanes), jnp.uint32),
            jax.ShapeDtypeStruct((steps, 2, at_once), jnp.float32),
        ],
        grid=(steps,),
        in_specs=[pl.BlockSpec((at_once, heads, width), lambda i: (i, 0, 0)), new, new],
        out_specs=[
            pl.BlockSpec((at_once, *packed), lambda i: (i, 0, 0, 0)),
            pl.BlockSpec((1, 1, at_once), lambda i: (i, 0, 0)),
            pl.BlockSpec((at_once, 1, 2, lanes), lambda i: (i, 0, 0, 0)),
            pl.BlockSpec((1, 2, at_once), lambda i: (i, 0, 0)),
        ],
        scratch_shapes=[
            pltpu.VMEM((at_once, LANES), jnp.float32),
            pltpu.VMEM((2, at_once, lanes), jnp.uint32),
            pltpu.VMEM((2, -(-heads // 8) * 8 + shape.token_rows, width), jnp.float32),
        ],
        interpret=interpret,
        name="new_rounded",
    )(q, k.reshape(num_tokens, -1), v.reshape(num_tokens, -1))
    return queries, q_scale.reshape(-1), words, jnp.moveaxis(scales, 1, 0).reshape(2, -1)


def round_new_work(shape: DecodeShape, num_tokens: int) -> KernelWork:
    """The work of one call with queries, keys and values of bf16."""
    read = 2 * (shape.num_heads * shape.head_dim + 2 * shape.lanes)
    written = shape.num_chunks * shape.matmul_rows * shape.chunk_lanes + 8 * shape.lanes + 12
    return KernelWork(trips={}, hbm_bytes=num_tokens * (read + written), flops=0)


def _kernel(
    q: Any,
    k: Any,
    v: Any,
    queries: Any,
    q_scale: Any,
    words: Any,
    scales: Any,
    column: Any,
    rows: Any,
    parts: Any,
    *,
    shape: DecodeShape,
    factor: float,
) -> None:
    num_tokens, heads, width = q.shape

    def as_lanes(numbers: jax.Array) -> jax.Array:
        """A number of each token, [T, 1], as a row."""
        return jnp.broadcast_to(numbers, (num_tokens, LANES)).T[:1]

    for half, new in enumerate((k, v)):
        x = new[...].astype(jnp.float32)
        scale = jnp.maximum(jnp.max(jnp.abs(x), axis=1, keepdims=True) / LARGEST["int8"], LEAST)
        bits = jnp.round(x / scale).astype(jnp.int32) & 255
        bits |= bits << 8
        rows[half] = (bits | bits << 16).astype(jnp.uint32)
        scales[0, half : half + 1] = as_lanes(scale)

    largest = jnp.max(jnp.max(jnp.abs(q[...].astype(jnp.float32)), axis=1), axis=1, keepdims=True) * factor
    scale = jnp.maximum(largest, jnp.finfo(jnp.float32).tiny) / shape.full_scale
    q_scale[0] = as_lanes(scale)
    column[...] = jnp.broadcast_to(factor / scale, column.shape)
    parts[...] = jnp.zeros(parts.shape, jnp.float32)
    own = jax.lax.broadcasted_iota(jnp.int32, (shape.token_rows, 1), 0) // shape.groups
    blank = jnp.zeros((shape.matmul_rows - 2 * shape.token_rows, shape.chunk_lanes), jnp.float32)

    def of_token(token: Any, carry: Any) -> Any:
        one = pl.ds(token, 1)
        x = q[token].astype(jnp.float32) * jnp.tile(column[one], (1, width // LANES))
        high = jnp.round(x / shape.low_weight)
        parts[0, :heads], parts[1, :heads] = high, jnp.round(x - high * shape.low_weight)
        for half in (0, 1):
            words[token, 0, half : half + 1] = rows[half, one]
        for chunk in range(shape.num_chunks):
            first = chunk * shape.chunk_heads * shape.groups
            blocks = []
            for part in (0, 1):
                of_chunk = parts[part, first : first + shape.token_rows]
                kept = [jnp.where(own == head, of_chunk, 0) for head in range(shape.chunk_heads)]
                blocks.append(jnp.concatenate(kept, axis=1))
            whole = jnp.concatenate([*blocks, blank] if blank.shape[0] else blocks, axis=0)
            queries[token, chunk] = whole.astype(jnp.int32).astype(jnp.int8)
        return carry

    jax.lax.fori_loop(0, num_tokens, of_token, 0)
