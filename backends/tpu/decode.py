"""Paged attention for rows with few queries on TPUs: the wrapper around decode_kernel.py."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from ..token_scales import LARGEST, TokenScaled, rounded
from .block_sizes import block_sizes
from .cache import KV_DTYPES, LANES, PAGE_SIZES, ScaledPages, check_token_scales, pages_of, with_pages
from .decode_call import DecodeCall
from .decode_kernel import decode_kernel
from .decode_pack import (
    pack_new,
    pack_queries,
    pack_row_numbers,
    unpack_outputs,
    unpack_row_numbers,
)
from .decode_round import round_new, rounds
from .decode_shape import GENERATIONS, DecodeShape

MAX_QUERIES = 8
"""Queries of a row that this kernel takes; rows with more are prefill."""

_MAX_ENTRIES = 2**17
"""Page-table entries that fit into scalar memory beside the rest."""


_MAX_BLOCK_PAGES = 64
"""Pages of a block whose copies are started between other work: each costs code."""
_MOST_CHUNKS = 8
"""Chunks of heads with which two passes over the rows are still short programs."""
_NARROW = 2 * LANES
"""Lanes of a cache whose positions are few bytes."""
_LEAST_GAIN = 4
"""How many times shorter a short row's block must be: a turn takes some time whatever its block."""


@dataclass(frozen=True)
class DecodeBlocks:
    """Positions of a step of the kernel's loop, the VMEM it may take, positions of a step for rows no longer than
    that (0: there is no such step), and `block` for caches with scales of tokens whose positions are few bytes (0: the
    same): what a turn takes whatever its block is too much for so little."""

    block: int
    vmem_bytes: int
    short: int = 0
    narrow: int = 0

    @classmethod
    def of(cls, generation: str, sizes: Mapping[str, int] | None = None) -> "DecodeBlocks":
        """`sizes` as block_sizes.yaml has them, or what it has for a generation."""
        sizes = sizes or block_sizes("decode", generation)
        return cls(sizes["block"], sizes["vmem_mib"] * 2**20, sizes["short"], sizes.get("narrow", 0))


def check_decode(
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int,
    kv_dtype: DTypeLike,
    generation: str,
    max_decode_len: int = 1,
    table_entries: int = 0,
) -> None:
    """Declines what the kernel does not have, when an engine is built.

    Args:
        table_entries: rows times pages per row of the largest page table.

    Raises:
        UnsupportedError: names the value and what is supported.
    """

    def refuse(what: str, given: object, supported: str) -> None:
        raise UnsupportedError(f"TPU decode attention: {what} {given}, supported are {supported}")

    def one_of(what: str, given: object, supported: Sequence[object]) -> None:
        if given not in supported:
            refuse(what, given, ", ".join(map(str, supported)))

    one_of("generation", generation, GENERATIONS)
    one_of("page size", page_size, PAGE_SIZES)
    # Widening 8-bit numbers takes v4 13,000 cycles a block: more than moving twice the bytes.
    kv_dtypes = [name for name in KV_DTYPES if generation != "v4" or jnp.dtype(name).itemsize > 1]
    one_of(f"on {generation} kv dtype", jnp.dtype(kv_dtype).name, kv_dtypes)
    one_of("queries per row", max_decode_len, range(1, MAX_QUERIES + 1))
    if head_dim < 8 or head_dim % 8 or head_dim > 512:
        refuse("head width", head_dim, "multiples of 8 up to 512")
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        refuse(f"{num_heads} query heads with kv heads", num_kv_heads, "divisors of the query heads")
    if table_entries > _MAX_ENTRIES:
        refuse(
            "page table entries",
            table_entries,
            f"at most {_MAX_ENTRIES} (rows x pages per row): allow fewer rows at once or shorter texts",
        )
    decode_shape(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        page_size=page_size,
        kv_dtype=kv_dtype,
        generation=generation,
        table_width=1,
        max_decode_len=max_decode_len,
    )


def decode_attention(
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
    blocks: DecodeBlocks | None = None,
    interpret: bool = False,
    mask: Bool[Array, "T queries"] | None = None,
    return_lse: bool = False,
    out: Float[Array, "T N H"] | None = None,
    max_decode_len: int | None = None,
) -> Any:
    """Attention for the rows with 1 to `max_decode_len` queries, as Backend.ragged_attention describes.

    Args:
        mask: which of its own row's new tokens each token sees, itself included; None: those up to itself. It sees
            all positions before them.
        out: where the results go; other rows' tokens keep what they have. None: zeros.
        max_decode_len: None: `index.max_query_len` where that is at most 8, otherwise 1.

    Returns:
        out and the cache; with `return_lse` also log-sum-exps of the scores [T, N] in fp32, -inf for other tokens.
    """
    blocks = blocks or DecodeBlocks.of(generation)
    if max_decode_len is None:
        bound = index.max_query_len
        max_decode_len = bound if bound is not None and bound <= MAX_QUERIES else 1
    pages = pages_of(cache)
    num_tokens, num_heads, head_dim = q.shape
    width = index.page_table.shape[1]
    page = pages.shape[2] // 2
    name = pages.dtype.name
    check_decode(
        num_heads=num_heads,
        num_kv_heads=k.shape[1],
        head_dim=head_dim,
        page_size=page,
        kv_dtype=name,
        generation=generation,
        max_decode_len=max_decode_len,
        table_entries=index.page_table.size,
    )
    shape = decode_shape(
        num_heads=num_heads,
        num_kv_heads=k.shape[1],
        head_dim=head_dim,
        page_size=page,
        kv_dtype=name,
        generation=generation,
        table_width=width,
        window=spec.window,
        max_decode_len=max_decode_len,
        blocks=blocks,
        token_scales=isinstance(cache, TokenScaled),
    )
    by_token = isinstance(cache, TokenScaled)
    if by_token:
        check_token_scales(name, page)
    call = DecodeCall(shape, spec.window, spec.soft_cap, sinks is not None, return_lse, interpret, by_token)

    num_rows = index.kv_lens.shape[0]
    q_lens = jnp.diff(index.query_starts)
    query = jnp.arange(max_decode_len)
    ours = (q_lens >= 1) & (q_lens <= max_decode_len) & (index.kv_lens >= 1)
    valid = ours[:, None] & (query < q_lens[:, None])
    token = jnp.where(valid, index.query_starts[:-1, None] + query, num_tokens)
    # As many tokens as rows of one each: the kernel finds a row's token itself, and nothing is gathered or scattered.
    in_place = max_decode_len == 1 and num_tokens == num_rows and out is None
    places = index.query_starts[:-1] if in_place else jnp.arange(num_rows)

    def of_rows(x: jax.Array) -> jax.Array:
        return x[:, None] if in_place else jnp.take(x, token, axis=0, mode="fill", fill_value=0)

    def of_tokens(x: jax.Array, others: jax.Array) -> jax.Array:
        if not in_place:
            return others.at[token].set(x.astype(others.dtype), mode="drop")
        wanted = (token == jnp.arange(num_tokens)).any(axis=0)
        return jnp.where(wanted.reshape(-1, *[1] * (others.ndim - 1)), x[:, 0].astype(others.dtype), others)

    factor = spec.scale / spec.soft_cap if spec.soft_cap is not None else spec.scale * math.log2(math.e)
    scales = cache.head_scales[layer] if isinstance(cache, ScaledPages) else None
    if isinstance(cache, TokenScaled) and in_place and rounds(shape, num_tokens):
        packed, q_scale, new, of_new = round_new(q, k, v, shape, factor, interpret=interpret)
        cache = cache.with_scales(of_new, layer, index)
    else:
        if isinstance(cache, TokenScaled):
            k, v, cache = cache.with_new(k, v, name, layer, index)
        queries = of_rows(q).astype(jnp.float32) * factor
        if scales is not None:
            queries = queries * jnp.repeat(scales[0], shape.groups)[:, None]
        packed, q_scale = pack_queries(queries, shape)
        of_keys, of_values = (None, None) if scales is None else (scales[0], scales[1])
        new = pack_new(_stored(of_rows(k), shape, of_keys), _stored(of_rows(v), shape, of_values), shape)

    scalars = [
        jnp.asarray(layer, jnp.int32).reshape(1),
        index.kv_lens,
        q_lens,
        index.page_table.reshape(-1),
        places.astype(jnp.int32),
    ]
    if shape.split:
        scalars.append(q_scale.reshape(-1))
    if max_decode_len > 1:
        if mask is None:
            seen = jnp.broadcast_to((2 << query) - 1, token.shape)
        else:
            own = jnp.pad(
                of_rows(mask)[..., :max_decode_len], ((0, 0), (0, 0), (0, max(0, max_decode_len - mask.shape[1])))
            )
            seen = jnp.sum(own.astype(jnp.int32) << query, axis=-1)
        scalars.append(seen.reshape(-1).astype(jnp.int32))
    operands = [packed, new]
    if sinks is not None:
        operands.append(pack_row_numbers(sinks.astype(jnp.float32) * math.log2(math.e), shape))
    if isinstance(cache, TokenScaled):
        operands.append(cache.scales)
    made, pages = _call(scalars, operands, pages, call, width, blocks, interpret)

    values = unpack_outputs(made[..., : shape.chunk_lanes], shape)
    if scales is not None:
        values = values * jnp.repeat(scales[1], shape.groups)[:, None]
    out = of_tokens(values, jnp.zeros_like(q) if out is None else out)
    cache = with_pages(cache, pages)
    if not return_lse:
        return out, cache
    lse = of_tokens(unpack_row_numbers(made[..., -1], shape), jnp.full((num_tokens, num_heads), -jnp.inf, jnp.float32))
    return out, cache, lse


def _call(
    scalars: list[jax.Array],
    operands: list[jax.Array],
    pages: jax.Array,
    call: DecodeCall,
    width: int,
    blocks: DecodeBlocks,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    num_rows = scalars[1].shape[0]
    hbm, vmem = pl.BlockSpec(memory_space=pltpu.HBM), pl.BlockSpec(memory_space=pltpu.VMEM)
    out = jax.ShapeDtypeStruct((num_rows, call.shape.num_chunks, call.shape.rows, call.out_lanes), jnp.float32)
    return pl.pallas_call(
        partial(decode_kernel, call=call, table_width=width),
        out_shape=[out, jax.ShapeDtypeStruct(pages.shape, pages.dtype)],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(),
            in_specs=[hbm, hbm, *[vmem] * call.sinks, *[hbm] * call.token_scales, hbm],
            out_specs=[hbm, hbm],
            scratch_shapes=list(call.scratch(num_rows).values()),
        ),
        input_output_aliases={len(scalars) + len(operands): 1},
        compiler_params=pltpu.CompilerParams(
            vmem_limit_bytes=blocks.vmem_bytes, disable_bounds_checks=True, disable_semaphore_checks=True
        ),
        interpret=interpret,
        name="decode_attention",
    )(*scalars, *operands, pages)


def _stored(x: Num[Array, "B Q K H"], shape: DecodeShape, scales: Float[Array, "K"] | None) -> Num[Array, "B Q lanes"]:
    """New keys or values as the cache holds them."""
    if scales is not None:
        x = x.astype(jnp.float32) / scales[:, None]
    if shape.kv_dtype in LARGEST:
        x = rounded(x.astype(jnp.float32), shape.kv_dtype)
    x = x.astype(shape.kv_dtype).reshape(*x.shape[:2], -1)
    return jnp.pad(x, ((0, 0), (0, 0), (0, shape.lanes - x.shape[-1])))


def decode_shape(
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int,
    kv_dtype: DTypeLike,
    generation: str,
    table_width: int,
    window: int | None = None,
    max_decode_len: int = 1,
    blocks: DecodeBlocks | None = None,
    token_scales: bool = False,
) -> DecodeShape:
    """The shape with the largest block that is no longer than what is seen of a row can be and fits into VMEM.

    Raises:
        UnsupportedError: none fits.
    """
    blocks = blocks or DecodeBlocks.of(generation)
    dtype = jnp.dtype(kv_dtype).name
    shape = DecodeShape(num_heads, num_kv_heads, head_dim, page_size, page_size, max_decode_len, dtype, generation)
    wanted = blocks.narrow if blocks.narrow and token_scales and shape.lanes <= _NARROW else blocks.block
    most = wanted if shape.copies_at_once else min(wanted, _MAX_BLOCK_PAGES * page_size)
    block, least = max(most, page_size), max(page_size, LANES)
    seen = table_width * page_size
    if window is not None:  # and what lies before it in the first page
        seen = min(seen, window + max_decode_len - 1 + page_size - 1)
    while block // 2 >= max(least, seen):
        block //= 2
    while _vmem_bytes(replace(shape, block=block)) > 0.85 * blocks.vmem_bytes:
        if block // 2 < least:
            raise UnsupportedError(
                f"TPU decode attention: {num_kv_heads} kv heads of width {head_dim}, "
                f"supported are as many as fit {blocks.vmem_bytes >> 20} MiB of VMEM on {generation}"
            )
        block //= 2
    return replace(shape, block=block, short=_short_block(replace(shape, block=block), blocks.short, token_scales))


def _short_block(shape: DecodeShape, wanted: int, token_scales: bool) -> int:
    """Positions of a step for short rows, or 0 where all rows are handled alike: where blocks are short anyway, and
    where a second pass would make the program too long."""
    block = max(wanted, 2 * shape.page)
    long_program = shape.max_queries > 1 or shape.num_chunks > _MOST_CHUNKS or (token_scales and shape.by_hand)
    if not wanted or long_program or _LEAST_GAIN * block > shape.block:
        return 0
    return block if replace(shape, block=block).by_hand == shape.by_hand else 0


def _vmem_bytes(shape: DecodeShape) -> int:
    """What the kernel's own memory takes, about."""
    call = DecodeCall(shape, None, None, True, True, False)
    total = 0
    for ref in call.scratch(1).values():
        if ref.memory_space == pltpu.VMEM:
            *lead, rows, lanes = ref.shape
            total += math.prod(lead) * max(rows, 8) * -(-lanes // LANES) * LANES * jnp.dtype(ref.dtype).itemsize
    return total
