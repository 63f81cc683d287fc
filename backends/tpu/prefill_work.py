"""What one call of the prefill kernel does on given lengths, for the static cost model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jax.typing import DTypeLike

from ..base import AttentionSpec
from ..kernel_work import KernelWork
from .cache import LANES
from .prefill import MOST_DECODE_QUERIES, paged_plan
from .prefill_plan import TILE_ALIGNMENT, PrefillBlocks, PrefillPlan
from .walk_work import Row, TileWork, WalkWork, attention_flops, tiles_of


def prefill_work(
    kv_lens: Sequence[int],
    query_lens: Sequence[int],
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int,
    kv_dtype: DTypeLike,
    generation: str,
    dtype: DTypeLike = "bfloat16",
    window: int | None = None,
    blocks: PrefillBlocks | None = None,
    limit: int = MOST_DECODE_QUERIES,
) -> KernelWork:
    """The work of prefill_attention for rows of these lengths, one of them at least its own; arguments as there."""
    plan = paged_plan(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        page=page_size,
        dtype=dtype,
        kv_dtype=kv_dtype,
        spec=AttentionSpec(1.0, window),
        generation=generation,
        blocks=blocks,
    )
    starts = [sum(query_lens[:row]) for row in range(len(query_lens))]
    ours = [row for row, queries in enumerate(query_lens) if queries > limit]
    rows = [Row(starts[row], query_lens[row], kv_lens[row]) for row in ours]
    tiles = list(tiles_of(plan, rows))
    walk, paged = WalkWork.of(plan, tiles), PageWork.of(plan, rows, tiles)
    fetches = walk.chunks - 1 + plan.blocks.buffers
    before, behind = ours[0], len(kv_lens) - ours[0] - len(ours)  # rows of the other kernel, passed over
    written = paged.written / paged.chunks
    # In the order of the program; None where the compiler knows the trips. Loops of one turn are none, tpu7x copies new
    # keys and new values in a loop, and v5p lets but one of its cores run the kernel.
    of_heads = [None] if num_heads > 1 else []
    of_lanes = [None] if plan.lanes > LANES else []
    loops = [
        *(1.0, walk.tile_trips, 1.0, *of_heads, *of_heads, walk.chunk_trips, walk.fetch_trips, 1.0),
        *(paged.chunks / len(rows), *([None] if generation == "tpu7x" else [])),
        *(written, *of_lanes, written, *of_lanes, written),
        *(paged.read / walk.chunks, paged.read / walk.chunks, *([None] if plan.pages > 1 else []), walk.piece_trips),
    ]
    conditions = {
        0: before,
        2: behind / walk.tile_trips,
        3: walk.live,
        4: 1 / walk.tiles,  # only the first tile's queries are not asked for by the tile before
        5: (walk.tiles - 1) / walk.tiles,
        7: walk.chunk_live,
        8: walk.tile_trips / fetches,
        9: (before + behind) / walk.tile_trips,
        10: len(rows) / walk.tile_trips,
        15: walk.chunks / fetches,
        18: paged.cleaned / walk.chunks,
        19: paged.cleaned_pages / max(paged.cleaned * plan.pages, 1),
        20: walk.masked / walk.chunks,
        21: walk.cleared / walk.chunks,
        22: walk.finished,
        23: walk.shared / walk.tiles,
        24: 1 / plan.bodies,
        25: behind / walk.tiles,
    }
    return KernelWork(
        trips={number: trips for number, trips in enumerate(loops) if trips is not None},
        conditions={number + (generation == "v5p"): weight for number, weight in conditions.items()},
        counts={**walk.counts, "chunks_written": paged.chunks},
        hbm_bytes=walk.tile_bytes + paged.bytes_of(plan),
        flops=attention_flops(plan, rows),
    )


@dataclass(frozen=True)
class PageWork:
    """What happens to pages in one call.

    Args:
        read: pages fetched as keys and values, for all tiles.
        cleaned: chunks that hold something unwritten, and the pages in them that do.
        chunks: chunks of positions into which new keys and values are written.
        written: pages written, and how many of them are read before because only a part of them is new.
    """

    read: int
    cleaned: int
    cleaned_pages: int
    chunks: int
    written: int
    kept: int

    @classmethod
    def of(cls, plan: PrefillPlan, rows: Iterable[Row], tiles: Iterable[TileWork]) -> "PageWork":
        page, keys = plan.page, plan.blocks.keys
        read = cleaned = cleaned_pages = chunks = written = kept = 0
        for tile in tiles:
            for begin in range(tile.low * keys, tile.high * keys, keys):
                read += min(-(-(tile.row.length - begin) // page), plan.pages) - max(tile.first - begin, 0) // page
                if tile.first // page * page > begin or begin + keys > tile.row.length:
                    cleaned += 1
                    ends = range(begin + page, begin + keys + 1, page)
                    cleaned_pages += sum(end <= tile.first or end > tile.row.length for end in ends)
        for row in rows:
            chunks += -(-row.length // keys) - row.own // keys
            pages = range(row.own // page, -(-row.length // page))
            written += len(pages)
            kept += sum(number * page < row.own or (number + 1) * page > row.length for number in pages)
        return cls(read, cleaned, cleaned_pages, chunks, written, kept)

    def bytes_of(self, plan: PrefillPlan) -> int:
        """Of pages, and of the new keys and values."""
        page = 2 * plan.page * plan.lanes * jnp.dtype(plan.kv_dtype).itemsize
        fresh = 2 * (plan.blocks.keys + TILE_ALIGNMENT) * plan.lanes * jnp.dtype(plan.dtype).itemsize
        return (self.read + self.written + self.kept) * page + self.chunks * fresh
