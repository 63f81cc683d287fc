"""Decode attention over pages: rows with one query, or the few that speculative decoding checks at once."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as triton
from jaxtyping import Array, Float, Int

from ..base import AttentionSpec, RaggedIndex
from .blocks import DecodeBlocks, decode_blocks
from .chips import GpuChip
from .decode_kernel import DecodePlan, combine_kernel, decode_kernel
from .tile import MIN_TILE, split_lanes

_PROGRAMS_PER_CORE = 3
"""Programs that hide each other's waiting on one core; more splits than that only add to the combination."""


def decode_attention(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    cache: Float[Array, "L P 2 K page H"],
    layer: Int[Array, ""],
    index: RaggedIndex,
    spec: AttentionSpec,
    sinks: Float[Array, "N"] | None = None,
    *,
    chip: GpuChip,
    max_queries: int | None = None,
    blocks: DecodeBlocks | None = None,
    interpret: bool = False,
    return_lse: bool = False,
) -> tuple[Array, ...]:
    """Writes the new keys and values of rows with 1 to max_queries queries, and attends for them.

    Args:
        chip: decides block sizes and how many programs share a row.
        max_queries: rows with more are left alone; None takes as many as a tile holds anyway.
        blocks: replaces the chip's block sizes.
        return_lse: also returns the natural log of each query's sum of exponentials, its sink included.

    Returns:
        out [T, N, H] (zero at padding; undefined for rows left alone), the cache, and lse fp32 [T, N] if asked for.
    """
    num_tokens, num_heads, head_dim = q.shape
    num_rows, num_kv_heads = index.kv_lens.shape[0], k.shape[1]
    group = num_heads // num_kv_heads
    max_queries = max_queries or queries_of_a_tile(group)
    blocks = blocks or decode_blocks(chip, head_dim, q.dtype)
    capacity = index.page_table.shape[1] * cache.shape[4]
    plan = DecodePlan(
        spec=spec,
        head_dim=head_dim,
        group=group,
        max_queries=max_queries,
        tile=max(MIN_TILE, pl.next_power_of_2(max_queries * group)),
        block=blocks.keys,
        splits=num_splits(chip, num_rows * num_kv_heads, pl.cdiv(capacity, blocks.keys)),
        lanes=split_lanes(head_dim),
        new_keys=max(MIN_TILE, pl.next_power_of_2(max_queries)),
    )
    whole = jax.ShapeDtypeStruct(q.shape, q.dtype), None
    if return_lse:
        whole = whole[0], jax.ShapeDtypeStruct((num_tokens, num_heads), jnp.float32)
    parts = whole
    if plan.splits > 1:
        shape = (num_rows, num_kv_heads, plan.splits, max_queries * group)
        parts = jax.ShapeDtypeStruct((*shape, head_dim), jnp.float32), jax.ShapeDtypeStruct(shape, jnp.float32)
    cache, out, lse = pl.pallas_call(
        partial(decode_kernel, plan=plan),
        out_shape=(jax.ShapeDtypeStruct(cache.shape, cache.dtype), *parts),
        grid=(num_rows, num_kv_heads, plan.splits),
        input_output_aliases={3: 0},
        compiler_params=triton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=interpret,
        name="decode_attention",
    )(q, k, v, cache, layer.reshape(1), index.page_table, index.query_starts, index.kv_lens, sinks)
    if plan.splits > 1:
        out, lse = pl.pallas_call(
            partial(combine_kernel, plan=plan, width=pl.next_power_of_2(plan.splits)),
            out_shape=whole,
            grid=(num_rows, max_queries, num_heads),
            compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
            interpret=interpret,
            name="combine_attention",
        )(out, lse, index.query_starts)
    return (out, cache, lse) if return_lse else (out, cache)


def queries_of_a_tile(group: int) -> int:
    """Queries of a row that cost decode attention no more than one: its smallest tile has room for them."""
    return max(1, MIN_TILE // group)


def num_splits(chip: GpuChip, programs: int, blocks: int) -> int:
    """Programs among which a row's keys are split.

    Args:
        chip: whose cores are to be filled.
        programs: rows times KV heads: how many there are without splitting.
        blocks: of keys, at most, in a row.
    """
    wanted = chip.cores * _PROGRAMS_PER_CORE // programs
    return max(1, min(wanted, blocks))
