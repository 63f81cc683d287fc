"""What one call of the flash kernel does on given lengths, for the static cost model."""

import jax.numpy as jnp
from jax.typing import DTypeLike

from ..base import AttentionSpec
from ..kernel_work import KernelWork
from .flash import flash_plan
from .prefill_plan import PrefillBlocks
from .walk_work import Row, WalkWork, attention_flops, tiles_of


def flash_work(
    num_queries: int,
    num_keys: int,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    generation: str,
    batch: int = 1,
    dtype: DTypeLike = "bfloat16",
    window: int | None = None,
    causal: bool = True,
    return_lse: bool = False,
    blocks: PrefillBlocks | None = None,
) -> KernelWork:
    """The work of flash_attention for a batch of equally long rows without segments; arguments as there."""
    plan = flash_plan(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        kv_dtype=dtype,
        spec=AttentionSpec(1.0, window),
        generation=generation,
        blocks=blocks,
        causal=causal,
        return_lse=return_lse,
    )
    apart = -(-num_queries // plan.blocks.queries) * plan.blocks.queries
    rows = [Row(row * apart, num_queries, num_keys) for row in range(batch)]
    walk = WalkWork.of(plan, list(tiles_of(plan, rows)))
    fetched = walk.chunks * 2 * plan.blocks.keys * plan.lanes * jnp.dtype(dtype).itemsize
    loops = [walk.tile_trips, None, None, walk.chunk_trips, walk.fetch_trips, *walk.laying, walk.piece_trips]
    conditions = {
        0: walk.live,
        1: 1 / walk.tiles,  # only the first tile's queries are not asked for by the tile before
        2: (walk.tiles - 1) / walk.tiles,
        4: walk.chunk_live,
        5: walk.masked / walk.chunks,
        6: walk.cleared / walk.chunks,
        7: walk.finished,
        8: walk.shared / walk.tiles,
    }
    return KernelWork(
        trips={number: trips for number, trips in enumerate(loops) if trips is not None},
        # v5p lets but one of its cores run the kernel: a condition before all others.
        conditions={number + (generation == "v5p"): weight for number, weight in conditions.items()},
        counts=walk.counts,
        hbm_bytes=walk.tile_bytes + fetched,
        flops=attention_flops(plan, rows),
    )
