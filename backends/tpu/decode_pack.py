"""Queries, new keys and values, and outputs in the form in which the decode kernel moves them."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num, UInt

from .decode_shape import DecodeShape


def pack_queries(
    q: Float[Array, "B Q N H"], shape: DecodeShape
) -> tuple[Num[Array, "B chunks rows lanes"], Float[Array, "B Q"]]:
    """Block-diagonal queries for each chunk, and what a product with them is to be multiplied by.

    Where the shape says so they are split into a high and a low 8-bit part, scaled by the largest of a token.
    """
    rows, queries = q.shape[:2]
    q = jnp.pad(q.astype(jnp.float32), ((0, 0), (0, 0), (0, _all_heads(shape) - shape.num_heads), (0, 0)))
    q = q.reshape(rows, queries, shape.num_chunks, -1, shape.head_dim)
    q = jnp.pad(q, ((0, 0),) * 3 + ((0, shape.token_rows - q.shape[3]), (0, 0)))
    # Slices side by side, since a tiled and reshaped array would be written to memory in between.
    q = jnp.concatenate([jnp.where(own, q, 0) for own in _own_rows(shape)], axis=-1)
    q = jnp.pad(q, ((0, 0),) * 4 + ((0, shape.chunk_lanes - q.shape[4]),))

    scale = jnp.ones((rows, queries), jnp.float32)
    parts = [q]
    if shape.split:
        largest = jnp.max(jnp.abs(q), axis=(2, 3, 4))
        scale = jnp.maximum(largest, jnp.finfo(jnp.float32).tiny) / shape.full_scale
        parts = split_parts(q / scale[:, :, None, None, None], shape)
    parts = [jnp.swapaxes(part, 1, 2).reshape(rows, shape.num_chunks, shape.rows, -1) for part in parts]
    packed = jnp.concatenate(parts, axis=2)
    packed = jnp.pad(packed, ((0, 0), (0, 0), (0, shape.matmul_rows - packed.shape[2]), (0, 0)))
    # A matrix unit driven by hand takes them transposed, and nothing transposes 8-bit numbers; bf16 holds both parts.
    return packed.astype("bfloat16" if shape.by_hand else shape.matmul_dtype), scale


def _all_heads(shape: DecodeShape) -> int:
    """Query heads, with those that the last chunk lacks."""
    return shape.num_chunks * shape.chunk_heads * shape.groups


def _own_rows(shape: DecodeShape) -> list[Bool[np.ndarray, "rows 1"]]:
    """Which rows of one query's part of a chunk belong to each of the chunk's kv heads; XLA need not work it out."""
    head = np.arange(shape.token_rows)[:, None] // shape.groups
    return [head == number for number in range(shape.chunk_heads)]


def split_parts(x: jax.Array, shape: DecodeShape) -> list[jax.Array]:
    """fp32 numbers of at most `full_scale` as 8-bit numbers in fp32: x is high * low_weight + low, almost."""
    if shape.matmul_dtype == "int8":
        high = jnp.round(x / shape.low_weight)
        return [high, jnp.round(x - high * shape.low_weight)]
    high = x.astype(shape.matmul_dtype).astype(jnp.float32)
    return [high, x - high]


def pack_new(k: Num[Array, "B Q lanes"], v: Num[Array, "B Q lanes"], shape: DecodeShape) -> UInt[Array, "B Q 2 lanes"]:
    """Keys and values of the cache's type as words that repeat each number as often as it fits."""
    both = jnp.stack([k, v], axis=2)
    bits = jax.lax.bitcast_convert_type(both, f"uint{8 * both.dtype.itemsize}").astype(jnp.uint32)
    for width in (8, 16):
        if 8 * both.dtype.itemsize <= width:
            bits = bits | bits << width
    return bits


def unpack_outputs(packed: Float[Array, "B chunks rows lanes"], shape: DecodeShape) -> Float[Array, "B Q N H"]:
    """Each head's own lanes."""
    rows, queries = packed.shape[0], shape.max_queries
    out = packed.reshape(rows, shape.num_chunks, queries, shape.token_rows, -1)
    lanes = [out[..., head * shape.head_dim : (head + 1) * shape.head_dim] for head in range(shape.chunk_heads)]
    out = lanes[0]
    for own, part in zip(_own_rows(shape)[1:], lanes[1:], strict=True):
        out = jnp.where(own, part, out)
    out = jnp.swapaxes(out[..., : shape.chunk_heads * shape.groups, :], 1, 2)
    return out.reshape(rows, queries, _all_heads(shape), -1)[:, :, : shape.num_heads]


def unpack_row_numbers(packed: Float[Array, "B chunks rows"], shape: DecodeShape) -> Float[Array, "B Q N"]:
    """One number per query and head."""
    out = packed.reshape(packed.shape[0], shape.num_chunks, shape.max_queries, shape.token_rows)
    out = jnp.swapaxes(out[..., : shape.chunk_heads * shape.groups], 1, 2)
    return out.reshape(packed.shape[0], shape.max_queries, -1)[:, :, : shape.num_heads]


def pack_row_numbers(x: Float[Array, "N"], shape: DecodeShape) -> Float[Array, "chunks rows 1"]:
    """One number per head, repeated for each query of a row; zero where no head is."""
    heads = shape.chunk_heads * shape.groups
    out = jnp.pad(x.astype(jnp.float32), (0, shape.num_chunks * heads - x.shape[0])).reshape(shape.num_chunks, 1, heads)
    out = jnp.pad(out, ((0, 0), (0, 0), (0, shape.token_rows - heads)))
    return jnp.tile(out, (1, shape.max_queries, 1)).reshape(shape.num_chunks, shape.rows, 1)
