"""Ragged paged attention on a TPU, for rows with many queries: chunked prefill, alone or in mixed batches."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Num

from ..base import AttentionSpec, PyTree, RaggedIndex
from ..errors import UnsupportedError
from ..token_scales import TokenScaled
from .cache import KV_DTYPES, PAGE_SIZES, ScaledPages, check_token_scales, pages_of, with_pages
from .prefill_kernel import behind, front, prefill_kernel, shifted, write_scratch
from .prefill_plan import (
    GENERATIONS,
    TILE_ALIGNMENT,
    PrefillBlocks,
    PrefillPlan,
    fitted,
)
from .prefill_step import query_scale

DTYPES = ("float32", "bfloat16")
HEAD_DIMS = (16, 256)
"""Narrowest and widest head, in steps of 16."""
MOST_DECODE_QUERIES = 8
"""Rows of more queries than this are this kernel's where the caller does not say otherwise."""
_MAX_ENTRIES = 2**17  # of the page table: what fits into scalar memory beside the rest


def check_prefill(
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int,
    kv_dtype: DTypeLike,
    generation: str,
    dtype: DTypeLike = "bfloat16",
    table_entries: int = 0,
) -> None:
    """Declines what the kernel does not have, when an engine is built.

    Args:
        table_entries: rows times pages per row of the largest page table.

    Raises:
        UnsupportedError: names the value and what is supported.
    """
    one_of("generation", generation, GENERATIONS)
    one_of("page size", page_size, PAGE_SIZES)
    one_of("kv dtype", jnp.dtype(kv_dtype).name, KV_DTYPES)
    check_heads(num_heads, num_kv_heads, head_dim, dtype)
    if table_entries > _MAX_ENTRIES:
        raise UnsupportedError(
            f"TPU prefill attention: {table_entries} page table entries, supported are at most {_MAX_ENTRIES} "
            "(rows x pages per row): allow fewer rows at once or shorter texts"
        )
    paged_plan(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        page=page_size,
        dtype=dtype,
        kv_dtype=kv_dtype,
        spec=AttentionSpec(1.0),
        generation=generation,
        blocks=None,
    )


def paged_plan(
    *, dtype: DTypeLike, kv_dtype: DTypeLike, generation: str, blocks: PrefillBlocks | None, **shape: Any
) -> PrefillPlan:
    """The geometry of one call; `shape` are more fields of PrefillPlan.

    Raises:
        UnsupportedError: it does not fit the generation's VMEM.
    """
    blocks = blocks or PrefillBlocks.of("prefill", generation)
    names: dict[str, Any] = {"dtype": jnp.dtype(dtype).name, "kv_dtype": jnp.dtype(kv_dtype).name}
    return fitted(PrefillPlan(**shape, **names, blocks=blocks), write_scratch)


def check_heads(num_heads: int, num_kv_heads: int, head_dim: int, dtype: DTypeLike) -> None:
    """What flash and prefill attention ask of a model alike.

    Raises:
        UnsupportedError: names the value and what is supported.
    """
    one_of("dtype", jnp.dtype(dtype).name, DTYPES)
    if head_dim % HEAD_DIMS[0] or not HEAD_DIMS[0] <= head_dim <= HEAD_DIMS[1]:
        raise UnsupportedError(
            f"TPU prefill attention: head width {head_dim}, supported are multiples of {HEAD_DIMS[0]} "
            f"up to {HEAD_DIMS[1]}"
        )
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        raise UnsupportedError(
            f"TPU prefill attention: {num_heads} query heads with {num_kv_heads} kv heads, supported are divisors of "
            "the query heads"
        )


def one_of(what: str, given: object, supported: tuple[object, ...]) -> None:
    if given not in supported:
        raise UnsupportedError(f"TPU prefill attention: {what} {given}, supported are {', '.join(map(str, supported))}")


def prefill_attention(
    q: Float[Array, "T N H"],
    k: Num[Array, "T K H"],
    v: Num[Array, "T K H"],
    cache: PyTree,
    layer: Int[Array, ""],
    index: RaggedIndex,
    spec: AttentionSpec,
    sinks: Float[Array, "N"] | None = None,
    *,
    generation: str,
    blocks: PrefillBlocks | None = None,
    interpret: Any = False,
    mask: Bool[Array, "T queries"] | None = None,
    return_lse: bool = False,
    out: Float[Array, "T N H"] | None = None,
    limit: int = MOST_DECODE_QUERIES,
) -> Any:
    """Attention for the rows with more than `limit` queries, as Backend.ragged_attention describes.

    Args:
        mask: which of its own row's new tokens each token sees, itself included, before or behind it; None: those up to
            itself. It sees all that were there before; a window holds in any case.
        out: where the results go; other rows' tokens keep what they have. None: zeros.

    Returns:
        out and the cache; with `return_lse` also log-sum-exps of the scores [T, N] in fp32, -inf for other tokens.

    Raises:
        UnsupportedError: something that the kernel does not have.
    """
    num_tokens, num_heads, head_dim = q.shape
    num_rows, pages_per_row = index.page_table.shape
    pages = pages_of(cache)
    check_prefill(
        num_heads=num_heads,
        num_kv_heads=k.shape[1],
        head_dim=head_dim,
        page_size=pages.shape[2] // 2,
        kv_dtype=pages.dtype,
        generation=generation,
        dtype=q.dtype,
        table_entries=index.page_table.size,
    )
    plan = paged_plan(
        num_heads=num_heads,
        num_kv_heads=k.shape[1],
        head_dim=head_dim,
        page=pages.shape[2] // 2,
        dtype=q.dtype,
        kv_dtype=pages.dtype,
        spec=spec,
        generation=generation,
        blocks=blocks,
        causal=mask is None,
        extra_mask=mask is not None,
        sinks=sinks is not None,
        return_lse=return_lse,
        token_scales=isinstance(cache, TokenScaled),
    )
    if isinstance(cache, TokenScaled):
        check_token_scales(pages.dtype, plan.page)
        k, v, cache = cache.with_new(k, v, pages.dtype, layer, index)
    scales = cache.head_scales[layer] if isinstance(cache, ScaledPages) else None
    if scales is not None:
        q = (q.astype(jnp.float32) * jnp.repeat(scales[0], plan.groups)[:, None]).astype(q.dtype)
    padded = -(-num_tokens // TILE_ALIGNMENT) * TILE_ALIGNMENT + plan.blocks.queries
    operands = [in_hbm(x) for x in (into_windows(plan, q, padded), _new(plan, k, v, scales, padded), pages)]
    if mask is not None:
        operands.append(in_hbm(shifted(plan, mask, index, padded)))
    if isinstance(cache, TokenScaled):
        operands.append(in_hbm(cache.scales))
    in_specs = [pl.BlockSpec(memory_space=pltpu.HBM)] * len(operands)
    if sinks is not None:
        operands.append(sinks.astype(jnp.float32))
        in_specs.append(pl.BlockSpec(memory_space=pltpu.SMEM))
    shapes = [
        pltpu.HBM((padded, num_heads * plan.out_width), q.dtype),
        jax.ShapeDtypeStruct(pages.shape, pages.dtype),
    ]
    if return_lse:
        most_tiles = num_tokens // plan.blocks.queries + 2 * min(num_rows, num_tokens // (limit + 1)) + 1
        shapes.append(pltpu.HBM((most_tiles, num_heads, plan.blocks.queries), jnp.float32))
    starts = index.query_starts
    table = [
        jnp.reshape(layer, 1).astype(jnp.int32),
        index.page_table.reshape(-1),
        starts,
        index.kv_lens,
    ]
    computed, pages, *lse = pl.pallas_call(
        partial(prefill_kernel, plan=plan, limit=limit, pages_per_row=pages_per_row),
        out_shape=shapes,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(table),
            grid=(1,),
            in_specs=in_specs,
            out_specs=[pl.BlockSpec(memory_space=pltpu.HBM)] * len(shapes),
            scratch_shapes=(plan.scratch | write_scratch(plan),),
        ),
        input_output_aliases={len(table) + 2: 1},
        compiler_params=pltpu.CompilerParams(
            vmem_limit_bytes=plan.blocks.vmem_mib << 20,
            disable_bounds_checks=True,
            disable_semaphore_checks=True,
        ),
        interpret=interpret,
        name="prefill_attention",
    )(*table, *operands)

    token = jnp.arange(num_tokens)
    row = jnp.minimum(jnp.searchsorted(starts[1:], token, side="right"), num_rows - 1)
    lens = jnp.diff(starts)
    ours = (token < starts[-1]) & (lens[row] > limit)
    computed = computed[:num_tokens].reshape(num_tokens, num_heads, -1)[..., :head_dim]
    if scales is not None:
        computed = (computed.astype(jnp.float32) * jnp.repeat(scales[1], plan.groups)[:, None]).astype(q.dtype)
    out = jnp.where(ours[:, None, None], computed, 0 if out is None else out)
    cache = with_pages(cache, pages)
    if not return_lse:
        return out, cache
    first = starts[:-1] // TILE_ALIGNMENT * TILE_ALIGNMENT
    tiles = jnp.where(lens > limit, -(-(starts[1:] - first) // plan.blocks.queries), 0)
    at = token - first[row]
    tile = (jnp.cumsum(tiles) - tiles)[row] + at // plan.blocks.queries
    found = lse[0][jnp.minimum(tile, lse[0].shape[0] - 1), :, at % plan.blocks.queries]
    return out, cache, jnp.where(ours[:, None], found, -jnp.inf)


def _new(
    plan: PrefillPlan,
    k: Num[Array, "T K H"],
    v: Num[Array, "T K H"],
    scales: Float[Array, "2 K"] | None,
    padded: int,
) -> Num[Array, "2 rows lanes"]:
    """New keys and values as the cache rounds them, in the activations' dtype, which holds all 8-bit numbers."""
    new = jnp.stack([k, v])
    if scales is not None:
        new = new.astype(jnp.float32) / scales[:, None, :, None]
    if plan.kv_dtype == "int8":
        new = jnp.clip(jnp.round(new.astype(jnp.float32)), -127, 127)
    elif plan.kv_dtype == "float8_e4m3fn":
        new = jnp.clip(new.astype(jnp.float32), -448, 448).astype(plan.kv_dtype)
    new = new.astype(plan.dtype).reshape(2, k.shape[0], -1)
    ends = (front(plan), behind(plan) + padded - k.shape[0])
    return jnp.pad(new, ((0, 0), ends, (0, plan.lanes - new.shape[-1])))


def into_windows(plan: PrefillPlan, q: Float[Array, "T N H"], padded: int) -> Float[Array, "tokens lanes"]:
    """Scaled queries, each in the lanes of its KV head's window, windows side by side."""
    num_tokens = q.shape[0]
    q = (q.astype(jnp.float32) * query_scale(plan)).astype(q.dtype)
    if plan.window > plan.head_dim:
        by_kv_head = q.reshape(num_tokens, plan.num_kv_heads, plan.groups, plan.head_dim)
        placed = []
        for k in range(plan.num_kv_heads):
            begin = k * plan.head_dim - plan.window_start(k)
            placed.append(jnp.pad(by_kv_head[:, k], ((0, 0), (0, 0), (begin, plan.window - begin - plan.head_dim))))
        q = jnp.concatenate(placed, axis=1)
    return jnp.pad(q.reshape(num_tokens, -1), ((0, padded - num_tokens), (0, 0)))


def in_hbm(x: Array) -> Array:
    """An operand that XLA may not move to VMEM, as it likes to do with all that fits there: what a kernel reads once is
    better left where it is, and such copies take the compiler most of a minute to place."""
    return pltpu.with_memory_space_constraint(x, pltpu.HBM)
