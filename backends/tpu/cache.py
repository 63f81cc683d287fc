"""How keys and values lie in a TPU's memory.

A page of `page` positions is one contiguous block `[2 * page, lanes]`: row p holds the keys of position p of all heads
side by side, row page + p their values, so one DMA fetches a page for every head. Head k takes the lanes
k * H : (k + 1) * H, with no padding between heads, whatever H is; lanes beyond K * H are zero for ever. Eight-bit
pages of 16 positions fill exactly one (32, 128) tile per 128 lanes.
"""

from dataclasses import dataclass
from typing import no_type_check

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from ..base import CacheGroup, PyTree
from ..errors import UnsupportedError
from ..token_scales import LARGEST, TokenScaled

LANES = 128
PAGE_SIZES = (16, 32, 64, 128, 256)
KV_DTYPES = ("float32", "bfloat16", "float8_e4m3fn", "int8")


@no_type_check  # JAX rebuilds it around tracers, shapes and shardings
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScaledPages:
    """Pages of 8-bit numbers that mean `number * scale`.

    Args:
        pages: [L, P, 2 * page, lanes].
        head_scales: fp32 [L, 2, K], of keys and of values; a scale per tensor is one number repeated.
    """

    pages: Num[Array, "L P rows lanes"]
    head_scales: Float[Array, "L 2 K"]


def pages_of(cache: PyTree) -> Num[Array, "L P rows lanes"]:
    """The pages themselves, of a cache with scales or without."""
    if isinstance(cache, TokenScaled):
        return cache.numbers
    return cache.pages if isinstance(cache, ScaledPages) else cache


def with_pages(cache: PyTree, pages: Num[Array, "L P rows lanes"]) -> PyTree:
    """The same cache around other pages."""
    if isinstance(cache, TokenScaled):
        return TokenScaled(pages, cache.scales)
    return ScaledPages(pages, cache.head_scales) if isinstance(cache, ScaledPages) else pages


def check_token_scales(kv_dtype: DTypeLike, page: int) -> None:
    """Declines scales for each token that the kernels have no copies for.

    Raises:
        UnsupportedError: names the value and what is supported.
    """
    name = jnp.dtype(kv_dtype).name
    if name not in LARGEST:
        raise UnsupportedError(f"TPU attention: kv dtype {name} with token scales, supported are {', '.join(LARGEST)}")
    if page % LANES:
        sizes = ", ".join(str(size) for size in PAGE_SIZES if size % LANES == 0)
        raise UnsupportedError(f"TPU attention: page size {page} with token scales, supported are {sizes}")


def num_lanes(num_kv_heads: int, head_dim: int) -> int:
    """Width of a row: K * H rounded up to whole vector registers."""
    return -(-num_kv_heads * head_dim // LANES) * LANES


def tile_rows(dtype: DTypeLike) -> int:
    """Rows of the smallest block that a DMA moves: those that share 32-bit words of one vector register."""
    return 32 // jnp.dtype(dtype).itemsize


def allocate_tpu_cache(
    group: CacheGroup, *, num_pages: int, page_size: int, dtype: DTypeLike
) -> Num[Array, "L P rows lanes"]:
    """Empty pages for all layers of a group; whoever needs scales puts them into ScaledPages."""
    lanes = num_lanes(group.num_kv_heads, group.head_dim)
    return jnp.zeros((group.num_layers, num_pages, 2 * page_size, lanes), dtype)
