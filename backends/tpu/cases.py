"""Our TPU attention kernels, as cases for the compiler: a kernel at a shape, with the work that it does there."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..aot import Case
from ..base import AttentionSpec, RaggedIndex
from ..token_scales import TokenScaled
from .cache import num_lanes
from .compiler_options import compiler_options
from .decode import DecodeBlocks, decode_attention
from .decode_work import decode_work
from .flash import flash_attention
from .flash_work import flash_work
from .grouped import grouped_matmul
from .grouped_plan import GroupedBlocks
from .grouped_work import grouped_work
from .prefill import prefill_attention
from .prefill_plan import PrefillBlocks
from .prefill_work import prefill_work
from .rounding import round_norm, rounding_work

_LAYERS = 2
"""Layers of the cache: how many there are changes nothing but addresses."""


def decode(
    *,
    generation: str,
    batch: int,
    context: int,
    page: int,
    kv_dtype: str = "bfloat16",
    queries: int = 1,
    num_q_heads: int = 32,
    num_kv_heads: int = 8,
    head_dim: int = 128,
    longest: int | None = None,
    window: int | None = None,
    scales: str = "tensor",
    blocks: Mapping[str, int] | None = None,
) -> Case:
    """`decode_attention` on rows of one length, with `queries` new positions each.

    Args:
        longest: positions for which the page table has room, of each row; None: no more than there are.
        window: how many of them are seen.
        scales: "token": an 8-bit cache has scales for each token.
    """
    sizes = None if blocks is None else DecodeBlocks.of(generation, blocks)

    def function(q: Any, k: Any, v: Any, cache: Any, layer: Any, index: RaggedIndex) -> Any:
        spec = AttentionSpec(head_dim**-0.5, window)
        return decode_attention(q, k, v, cache, layer, index, spec, generation=generation, blocks=sizes)

    cache: Any = _cache(batch * context // page, page, num_kv_heads * head_dim, kv_dtype)
    if scales == "token":
        cache = TokenScaled(cache, jax.ShapeDtypeStruct((*cache.shape[:2], 2, page), jnp.float32))  # pyright: ignore
    work = decode_work(
        [context] * batch,
        [queries] * batch,
        num_heads=num_q_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        page_size=page,
        kv_dtype=kv_dtype,
        generation=generation,
        table_width=-(-(longest or context) // page),
        window=window,
        max_decode_len=queries,
        blocks=sizes,
        token_scales=scales == "token",
    )
    return Case(
        function,
        (
            *_new(batch * queries, num_q_heads, num_kv_heads, head_dim),
            cache,
            np.int32(0),
            _rows(batch, context, page, queries, longest),
        ),
        donate=(3,),
        # Scales of tokens have new_rounded beside it, whose loops the compiler knows.
        work={"decode_attention": work} if scales == "token" else work,
        compiler_options=compiler_options(generation),
    )


def prefill(
    *,
    generation: str,
    length: int,
    page: int,
    kv_dtype: str = "bfloat16",
    num_q_heads: int = 32,
    num_kv_heads: int = 8,
    head_dim: int = 128,
    blocks: Mapping[str, Any] | None = None,
) -> Case:
    """`prefill_attention` on one prompt of `length` tokens, none of which is in the cache yet."""
    sizes = None if blocks is None else PrefillBlocks(**blocks)

    def function(q: Any, k: Any, v: Any, cache: Any, layer: Any, index: RaggedIndex) -> Any:
        spec = AttentionSpec(head_dim**-0.5)
        return prefill_attention(q, k, v, cache, layer, index, spec, generation=generation, blocks=sizes)

    return Case(
        function,
        (
            *_new(length, num_q_heads, num_kv_heads, head_dim),
            _cache(length // page, page, num_kv_heads * head_dim, kv_dtype),
            np.int32(0),
            _rows(1, length, page, length),
        ),
        donate=(3,),
        work=prefill_work(
            [length],
            [length],
            num_heads=num_q_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            page_size=page,
            kv_dtype=kv_dtype,
            generation=generation,
            blocks=sizes,
        ),
        compiler_options=compiler_options(generation),
    )


def flash(
    *,
    generation: str,
    length: int,
    kv_dtype: str = "bfloat16",
    num_q_heads: int = 32,
    num_kv_heads: int = 8,
    head_dim: int = 128,
    blocks: Mapping[str, Any] | None = None,
) -> Case:
    """`flash_attention`, causal, on one sequence."""
    sizes = None if blocks is None else PrefillBlocks(**blocks)

    def function(q: Any, k: Any, v: Any) -> Any:
        return flash_attention(q, k, v, AttentionSpec(head_dim**-0.5), generation=generation, blocks=sizes)

    return Case(
        function,
        _new(length, num_q_heads, num_kv_heads, head_dim),
        compiler_options=compiler_options(generation),
        work=flash_work(
            length,
            length,
            num_heads=num_q_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            generation=generation,
            blocks=sizes,
        ),
    )


def grouped(
    *,
    generation: str,
    num_rows: int,
    num_experts: int,
    num_inputs: int,
    num_outputs: int,
    dtype: str = "bfloat16",
    blocks: Mapping[str, int] | None = None,
) -> Case:
    """`grouped_matmul` of rows that chose their experts by lot."""
    sizes = None if blocks is None else GroupedBlocks(**blocks)
    groups = np.random.default_rng(0).multinomial(num_rows, [1 / num_experts] * num_experts)

    def function(x: Any, weight: Any, layer: Any, group_sizes: Any) -> Any:
        return grouped_matmul(x, weight, layer, group_sizes, generation=generation, blocks=sizes)

    return Case(
        function,
        (
            jax.ShapeDtypeStruct((num_rows, num_inputs), jnp.dtype(dtype)),
            jax.ShapeDtypeStruct((_LAYERS, num_experts, num_outputs, num_inputs), jnp.dtype(dtype)),
            np.int32(0),
            groups.astype(np.int32),
        ),
        work=grouped_work(
            groups.tolist(),
            num_rows=num_rows,
            num_inputs=num_inputs,
            num_outputs=num_outputs,
            generation=generation,
            dtype=dtype,
            blocks=sizes,
        ),
        compiler_options=compiler_options(generation),
    )


def norm(*, generation: str, num_rows: int, width: int, dtype: str = "bfloat16") -> Case:
    """`round_norm` to int8."""
    rows, scale = jax.ShapeDtypeStruct((num_rows, width), jnp.dtype(dtype)), jax.ShapeDtypeStruct((width,), dtype)
    return Case(
        partial(round_norm, epsilon=1e-5, generation=generation),
        (rows, scale),
        work=rounding_work("norm", num_rows, width, generation, dtype),
        compiler_options=compiler_options(generation),
    )


def _new(tokens: int, num_q_heads: int, num_kv_heads: int, head_dim: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """New queries, keys and values."""
    heads = (num_q_heads, num_kv_heads, num_kv_heads)
    return tuple(jax.ShapeDtypeStruct((tokens, count, head_dim), jnp.bfloat16) for count in heads)


def _cache(num_pages: int, page: int, width: int, kv_dtype: str) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((_LAYERS, num_pages, 2 * page, num_lanes(1, width)), jnp.dtype(kv_dtype))


def _rows(batch: int, context: int, page: int, queries: int, longest: int | None = None) -> RaggedIndex:
    """Rows of one length, no two pages of a row together, in a table with room for longer ones."""
    per_row, room = -(-context // page), -(-max(longest or 0, context) // page)
    table = np.arange(batch * per_row, dtype=np.int32).reshape(per_row, batch).T
    numbers: Any = (
        np.pad(table, ((0, 0), (0, room - per_row))),
        np.arange(batch + 1, dtype=np.int32) * queries,
        np.full(batch, context, np.int32),
    )
    return RaggedIndex(*numbers, max_query_len=queries if queries <= 8 else None)
