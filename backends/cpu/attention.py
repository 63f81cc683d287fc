"""Ragged paged attention for the CPU, as one custom call per layer; see attention_layout.py for the cache."""

from functools import cache

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num
from llvmlite import ir

from ..base import AttentionSpec, CacheGroup, RaggedIndex
from ..errors import UnsupportedError
from ..ragged_attention import bind
from .attention_bytes import multiplies_cache
from .attention_call import KernelSpec
from .attention_kernel import emit
from .attention_layout import LANES, PageLayout
from .attention_shape import TileSpec
from .ffi import register
from .large_pages import zeros

DTYPES = ("float32", "bfloat16")
"""What activations may be."""
KV_DTYPES = (*DTYPES, "int8")
"""What the cache may be, whatever activations are."""


def check_cpu_attention(*, dtype: DTypeLike, kv_dtype: DTypeLike, page_size: int) -> None:
    """Declines what the kernel does not have.

    Raises:
        UnsupportedError: names the value and what is supported.
    """
    for field, given, known in (("dtype", dtype, DTYPES), ("kv dtype", kv_dtype, KV_DTYPES)):
        name = jnp.dtype(given).name
        if name not in known:
            raise UnsupportedError(f"backend cpu: {field} {name}, supported are {', '.join(known)}")
    if page_size < 1 or page_size % LANES:
        raise UnsupportedError(f"backend cpu: page size {page_size}, expected a multiple of {LANES}")


def allocate_cpu_cache(
    group: CacheGroup, *, num_pages: int, page_size: int, dtype: DTypeLike
) -> Num[Array, "L P K elements"]:
    layout = PageLayout(group.head_dim, page_size, jnp.dtype(dtype).name)
    return zeros((group.num_layers, num_pages, group.num_kv_heads, layout.elements), dtype)


def cpu_ragged_attention(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    cache: Num[Array, "L P K elements"],
    layer: Int[Array, ""],
    index: RaggedIndex,
    spec: AttentionSpec,
    sinks: Float[Array, "N"] | None = None,
) -> tuple[Float[Array, "T N H"], Num[Array, "L P K elements"]]:
    """As Backend.ragged_attention describes, with fp32 arithmetic. A query's output has the same bits in any batch."""
    return bind(_attend, q, k, v, cache, layer, index, spec, sinks)


def _attend(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    cache: Num[Array, "L P K elements"],
    layer: Int[Array, ""],
    index: RaggedIndex,
    spec: AttentionSpec,
    sinks: Float[Array, "N"] | None = None,
) -> tuple[Float[Array, "T N H"], Num[Array, "L P K elements"]]:
    layout = _layout(cache, q.shape[-1])
    in_bytes = multiplies_cache(layout, q.dtype.name)
    tile = TileSpec(layout, q.shape[1] // k.shape[1], float(spec.scale), spec.window, spec.soft_cap, in_bytes)
    target = _target(KernelSpec(k.shape[1], q.dtype.name, sinks is not None, tile))
    operands = [q, k.astype(q.dtype), v.astype(q.dtype), cache]
    operands += [jnp.asarray(x, jnp.int32) for x in (layer, index.page_table, index.query_starts, index.kv_lens)]
    if sinks is not None:
        operands.append(sinks.astype(jnp.float32))
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, cache)]
    out, cache = jax.ffi.ffi_call(target, results, input_output_aliases={3: 1})(*operands)
    return out, cache


def _layout(cache: Num[Array, "L P K elements"], head_dim: int) -> PageLayout:
    one = PageLayout(head_dim, 1, cache.dtype.name)
    return PageLayout(head_dim, cache.shape[-1] // one.elements, cache.dtype.name)


@cache
def _target(spec: KernelSpec) -> str:
    module = ir.Module("attention")
    emit(module, "ragged_attention", spec)
    return register(module, ["ragged_attention"])["ragged_attention"]
