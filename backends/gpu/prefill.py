"""Prefill attention: rows with many queries, over pages and the new keys, or dense without a cache."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as triton
from jaxtyping import Array, Float, Int

from ..base import AttentionSpec, RaggedIndex
from .blocks import PrefillBlocks, dense_blocks, prefill_blocks
from .chips import GpuChip
from .prefill_kernel import PrefillPlan, dense_prefill_kernel, paged_prefill_kernel
from .tile import split_lanes


def prefill_attention(
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
    out: Float[Array, "T N H"],
    lse: Float[Array, "T N"] | None = None,
    min_queries: int = 1,
    blocks: PrefillBlocks | None = None,
    interpret: bool = False,
) -> tuple[Array, ...]:
    """Writes the new keys and values of rows with at least min_queries queries, and attends for them.

    Args:
        chip: decides block sizes.
        out: receives the output of these rows; what it holds of other rows and of padding stays.
        lse: likewise receives the natural log of each query's sum of exponentials, its sink included.
        blocks: replaces the chip's block sizes.

    Returns:
        out, the cache, and lse if it was given.
    """
    blocks = blocks or prefill_blocks(chip, q.shape[-1], q.dtype, capped=spec.soft_cap is not None)
    plan = _plan(q, k, spec, blocks, min_queries)
    num_rows = index.kv_lens.shape[0]
    results = (cache, out, lse)
    first = 8 if sinks is None else 9  # how many operands stand before `out`
    cache, out, lse = pl.pallas_call(
        partial(paged_prefill_kernel, plan=plan, width=pl.next_power_of_2(num_rows)),
        out_shape=jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), results),
        # Row b's blocks begin at number starts[b] // queries + b.
        grid=(q.shape[0] // plan.queries + num_rows, k.shape[1]),
        input_output_aliases={3: 0, first: 1} if lse is None else {3: 0, first: 1, first + 1: 2},
        compiler_params=triton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=interpret,
        name="prefill_attention",
    )(q, k, v, cache, layer.reshape(1), index.page_table, index.query_starts, index.kv_lens, sinks, out, lse)
    return (out, cache) if lse is None else (out, cache, lse)


def dense_prefill_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    spec: AttentionSpec,
    sinks: Float[Array, "N"] | None = None,
    *,
    chip: GpuChip,
    lengths: Int[Array, "B"],
    blocks: PrefillBlocks | None = None,
    interpret: bool = False,
    return_lse: bool = False,
) -> tuple[Array, ...]:
    """Causal attention of each row to its own first lengths[b] tokens; the rest of the output is zero.

    Returns:
        out [B, T, N, H], and fp32 lse [B, T, N] if asked for.
    """
    num_rows, row_tokens, _, head_dim = q.shape
    q, k, v = (array.reshape(num_rows * row_tokens, *array.shape[2:]) for array in (q, k, v))
    blocks = blocks or dense_blocks(chip, head_dim, q.dtype, capped=spec.soft_cap is not None)
    plan = _plan(q, k, spec, blocks, 1)
    shape = (num_rows, row_tokens, q.shape[1])
    out, lse = pl.pallas_call(
        partial(dense_prefill_kernel, plan=plan, row_tokens=row_tokens),
        out_shape=(
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct(q.shape[:2], jnp.float32) if return_lse else None,
        ),
        grid=(num_rows * pl.cdiv(row_tokens, plan.queries), k.shape[1]),
        compiler_params=triton.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=interpret,
        name="dense_attention",
    )(q, k, v, lengths, sinks)
    out = out.reshape(*shape, head_dim)
    return (out, lse.reshape(shape)) if return_lse else (out,)


def _plan(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    spec: AttentionSpec,
    blocks: PrefillBlocks,
    min_queries: int,
) -> PrefillPlan:
    group = q.shape[1] // k.shape[1]
    tile = max(blocks.rows, pl.next_power_of_2(group))
    return PrefillPlan(spec, group, min_queries, tile, tile // group, blocks.keys, split_lanes(q.shape[-1]))
