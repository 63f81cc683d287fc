"""The cache of a GPU, and how a kernel reads and writes it.

One array for all layers of a group, `[L, P, 2, K, page, H]`: the keys of a page's positions for one head lie together,
then its values, so that a program, which serves one head, reads runs of `page * H` elements. A position is found by
the page table entry by entry, so any page size goes with any block of keys.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as triton
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from ..base import CacheGroup
from .tile import Lanes, Parts, Ref, load_tile, store_tile


def allocate_gpu_cache(
    group: CacheGroup, *, num_pages: int, page_size: int, dtype: DTypeLike
) -> Float[Array, "L P 2 K page H"]:
    return jnp.zeros((group.num_layers, num_pages, 2, group.num_kv_heads, page_size, group.head_dim), dtype)


def load_positions(
    cache: Ref,
    layer: Int[Array, ""],
    table: Ref,
    row: Int[Array, ""],
    head: Int[Array, ""],
    position: Int[Array, "S"],
    lanes: Sequence[Lanes],
    mask: Bool[Array, "S"] | None,
) -> tuple[Parts, Parts]:
    """Keys and values of one head at these positions of a row; zeros where the mask does not hold."""
    number, offset = _split(position, cache.shape[4])
    page = triton.load(table.at[row, number], mask=mask, other=None if mask is None else 0)
    keys, values = (load_tile(cache, (layer, page, side, head, offset), lanes, mask) for side in range(2))
    return keys, values


def store_positions(
    cache: Ref,
    layer: Int[Array, ""],
    table: Ref,
    row: Int[Array, ""],
    head: Int[Array, ""],
    position: Int[Array, "S"],
    lanes: Sequence[Lanes],
    mask: Bool[Array, "S"],
    keys: Parts,
    values: Parts,
) -> None:
    """Writes keys and values of one head at these positions of a row, where the mask holds."""
    number, offset = _split(position, cache.shape[4])
    page = triton.load(table.at[row, number], mask=mask, other=0)
    # A page that does not exist: the interpreter writes back what it finds where the mask does not hold.
    page = jnp.where(mask, page, cache.shape[1])
    for side, tile in enumerate((keys, values)):
        store_tile(cache, (layer, page, side, head, offset), lanes, mask, tile)


def _split(position: Int[Array, "S"], page_size: int) -> tuple[Int[Array, "S"], Int[Array, "S"]]:
    """Number of the page in its row, and offset in the page. (Python's operators would also ask for signs.)"""
    return jax.lax.div(position, jnp.int32(page_size)), jax.lax.rem(position, jnp.int32(page_size))
