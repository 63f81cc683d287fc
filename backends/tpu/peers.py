"""JAX's own public TPU attention kernels, as cases for the compiler: what ours are compared with.

Their trip counts depend on data, so each case says how often which loop runs on its lengths, and which branches are
taken. The numbers are places in the compiled program, the same on every generation; a kernel of another JAX version may
have others, and then the analysis says that a loop is missing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import flash_attention as jax_flash
from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention_kernel, quantization_utils
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import kernel as ragged_kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

from ..aot import Case
from ..kernel_work import KernelWork

_BLOCK_TOKENS = 1024
"""Key positions that the paged kernels fetch at once: as many pages as that is."""


def flash_attention(*, length: int, block: int = 1024, num_heads: int = 32, head_dim: int = 128) -> Case:
    """`flash_attention`, causal, one sequence; it knows no grouped heads, so keys and values are as many as queries."""
    steps = length // block
    sizes = jax_flash.BlockSizes(block_q=block, block_k_major=block, block_k=min(block, 512), block_b=1)
    heads = jax.ShapeDtypeStruct((1, num_heads, length, head_dim), jnp.bfloat16)
    function = partial(jax_flash.flash_attention, causal=True, sm_scale=head_dim**-0.5, block_sizes=sizes)
    blocks = num_heads * steps * steps
    work = KernelWork(
        conditions={0: blocks / (blocks + 2), 1: 1 / steps, 2: _causal_share(length, block, block), 3: 1 / steps},
        hbm_bytes=2 * num_heads * length * head_dim * (2 + 2 * steps),
        flops=causal_flops(length, num_heads, head_dim),
    )
    return Case(function, (heads, heads, heads), work=work)


def splash_attention(
    *,
    length: int,
    block_q: int = 1024,
    block_kv: int = 1024,
    num_q_heads: int = 32,
    num_kv_heads: int = 8,
    head_dim: int = 128,
) -> Case:
    """`splash_attention` for grouped heads: its multi-query kernel, mapped over the key/value heads."""
    groups = num_q_heads // num_kv_heads
    causal = splash_attention_mask.CausalMask((length, length))
    kernel = splash_attention_kernel.make_splash_mqa_single_device(
        splash_attention_mask.MultiHeadMask([causal] * groups),
        block_sizes=splash_attention_kernel.BlockSizes(block_q=block_q, block_kv=block_kv, block_kv_compute=512),
    )
    query = jax.ShapeDtypeStruct((num_kv_heads, groups, length, head_dim), jnp.bfloat16)
    key = jax.ShapeDtypeStruct((num_kv_heads, length, head_dim), jnp.bfloat16)
    rows, columns = length // block_q, length // block_kv
    blocks = num_q_heads * rows * columns
    share = _causal_share(length, block_q, block_kv)
    work = KernelWork(
        conditions={0: blocks / (blocks + 2), 1: 1 / columns, 2: share, 3: 1 / columns},
        hbm_bytes=round(2 * num_q_heads * length * head_dim * (2 + 2 * rows * share)),
        flops=causal_flops(length, num_q_heads, head_dim),
    )
    return Case(jax.vmap(kernel), (query, key, key), work=work)


def paged_attention(
    *,
    batch: int,
    context: int,
    page: int,
    kv_dtype: str = "bfloat16",
    num_q_heads: int = 32,
    num_kv_heads: int = 8,
    head_dim: int = 128,
) -> Case:
    """`paged_attention`, JetStream's decode kernel."""
    blocks = context // _BLOCK_TOKENS
    pages = jax.ShapeDtypeStruct((num_kv_heads, batch * context // page, page, head_dim), jnp.dtype(kv_dtype))
    num_bytes = 2 * batch * context * num_kv_heads * head_dim * pages.dtype.itemsize
    keys: Any = pages
    if kv_dtype == "int8":
        scales = jax.ShapeDtypeStruct((*pages.shape[:-1], 1), jnp.float32)
        quantized: Any = quantization_utils.QuantizedTensor
        keys = quantized(pages, scales)
        num_bytes += 2 * batch * context * num_kv_heads * head_dim * 4  # the wrapper writes each scale H times
    function = partial(paged_attention_kernel.paged_attention, pages_per_compute_block=_BLOCK_TOKENS // page)
    args = (
        jax.ShapeDtypeStruct((batch, num_q_heads, head_dim), jnp.bfloat16),
        keys,
        keys,
        np.full(batch, context, np.int32),
        page_table(batch, context, page),
    )
    runs = batch * num_kv_heads * blocks
    work = KernelWork(
        trips={1: blocks},
        conditions={
            0: batch * num_kv_heads / (batch * num_kv_heads + 2),
            2: 1 / blocks,  # on to the next head
            3: 1 / num_kv_heads,  # on to the next sequence
            4: 0.0,  # which is never empty
            6: 1 / runs,  # nothing has been fetched ahead yet
            7: 1 - 1 / runs,  # something is left to fetch ahead
        },
        hbm_bytes=num_bytes + 2 * batch * num_q_heads * head_dim * 2,
        flops=4 * batch * context * num_q_heads * head_dim,
    )
    return Case(function, args, work=work)


def ragged_paged_attention(
    *,
    batch: int,
    context: int,
    page: int,
    kv_dtype: str = "bfloat16",
    num_q_heads: int = 32,
    num_kv_heads: int = 8,
    head_dim: int = 128,
) -> Case:
    """`ragged_paged_attention` on rows of one query; its write-back is another program, not counted here."""
    queries_per_block = 32
    pages = jax.ShapeDtypeStruct((batch * context // page, page, 2 * num_kv_heads, head_dim), jnp.dtype(kv_dtype))
    scale = None if kv_dtype == "bfloat16" else 1.0
    function: Callable[..., Any] = partial(
        ragged_kernel.ragged_paged_attention,
        num_kv_pages_per_block=_BLOCK_TOKENS // page,
        num_queries_per_block=queries_per_block,
        vmem_limit_bytes=60 * 2**20,
        k_scale=scale,
        v_scale=scale,
    )
    args = (
        jax.ShapeDtypeStruct((batch, num_q_heads, head_dim), jnp.bfloat16),
        pages,
        np.full(batch, context, np.int32),
        page_table(batch, context, page),
        np.arange(batch + 1, dtype=np.int32),
        np.full(1, batch, np.int32),
    )
    blocks = -(-batch // queries_per_block)
    work = KernelWork(
        trips={1: batch / blocks, 2: context / _BLOCK_TOKENS},
        conditions={0: blocks / (blocks + 2), 3: 1 - _BLOCK_TOKENS / (batch * context)},
        hbm_bytes=2 * batch * context * num_kv_heads * head_dim * pages.dtype.itemsize
        + 2 * batch * num_q_heads * head_dim * 2,
        flops=4 * batch * context * num_q_heads * head_dim,
    )
    return Case(function, args, work=work)


def page_table(batch: int, context: int, page: int) -> np.ndarray:
    """Pages of rows of one length, in an order that keeps no two of a row together."""
    per_row = -(-context // page)
    return np.arange(batch * per_row, dtype=np.int32).reshape(per_row, batch).T.copy()


def causal_flops(length: int, num_heads: int, head_dim: int) -> int:
    """Multiplications and additions that the pairs of a causal mask need, in both products."""
    return 4 * head_dim * num_heads * (length * (length + 1) // 2)


def _causal_share(length: int, block_q: int, block_kv: int) -> float:
    """Fraction of the blocks in which a query sees a key."""
    rows, columns = length // block_q, length // block_kv
    seen = sum(min(columns, -(-(row + 1) * block_q // block_kv)) for row in range(rows))
    return seen / (rows * columns)
