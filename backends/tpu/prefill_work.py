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
    aside = plan.kv_dtype == plan.dtype  # pages that are new as a whole are copied beside the others
    whole = [paged.whole / len(rows)] if aside else []
    written = paged.looped / max(paged.written_chunks, 1)
    partial = paged.partial / max(paged.looped, 1)
    # In the order of the program as the backend's options make it; None where the compiler knows the trips. Loops of
    # one turn are none, and v5p lets but one of its cores run the kernel.
    of_heads = [None] if num_heads > 1 else []
    of_lanes = [None] if plan.lanes > LANES else []
    loops = [
        *(1.0, walk.tile_trips, 1.0, *of_heads, *of_heads, walk.chunk_trips, walk.fetch_trips, 1.0),
        *(*whole, paged.chunks / len(rows)),
        *(written, *of_lanes, written, *of_lanes, written, *whole),
        *(paged.read / walk.chunks, paged.read / walk.chunks, *([None] if plan.pages > 1 else [])),
        *(*walk.laying, walk.piece_trips),
    ]
    conditions = [
        *([1.0] if generation == "v5p" else []),
        *(before, 1.0, behind / walk.tile_trips, walk.live),
        *(1 / walk.tiles, (walk.tiles - 1) / walk.tiles, 1.0),  # the first tile's queries; those of the tiles ahead
        *(walk.chunk_live, walk.tile_trips / fetches, (before + behind) / walk.tile_trips, len(rows) / walk.tile_trips),
        *([1.0, 1.0, paged.written_chunks / paged.chunks] if aside else [1.0]),
        *(1.0, 1.0, *([partial] if aside else []), 1.0),
        *([1.0] if aside else []),
        *(walk.chunks / fetches, 1.0, 1.0),
        *(paged.cleaned / walk.chunks, paged.cleaned_pages / max(paged.cleaned * plan.pages, 1)),
        *(walk.masked / walk.chunks, walk.cleared / walk.chunks),
        *(walk.finished, walk.shared / walk.tiles, 1 / plan.bodies, behind / walk.tiles),
    ]
    return KernelWork(
        trips={number: trips for number, trips in enumerate(loops) if trips is not None},
        conditions=dict(enumerate(conditions)),
        counts={**walk.counts, "chunks_written": paged.written_chunks},
        hbm_bytes=walk.tile_bytes + paged.bytes_of(plan),
        flops=attention_flops(plan, rows),
    )


@dataclass(frozen=True)
class PageWork:
    """What happens to pages in one call.

    Args:
        read: pages fetched as keys and values, for all tiles.
        cleaned: chunks that hold something unwritten, and the pages in them that do.
        chunks: chunks of positions that get new keys and values.
        whole: pages that are copied as a whole, all of which is new.
        written_chunks: chunks with other pages, the pages of those chunks (`looped`), and the others (`partial`).
        kept: pages that are read before they are written, because only a part of them is new.
    """

    read: int
    cleaned: int
    cleaned_pages: int
    chunks: int
    whole: int
    written_chunks: int
    looped: int
    partial: int
    kept: int

    @classmethod
    def of(cls, plan: PrefillPlan, rows: Iterable[Row], tiles: Iterable[TileWork]) -> "PageWork":
        page, keys = plan.page, plan.blocks.keys
        read = cleaned = cleaned_pages = chunks = whole = written_chunks = looped = partial = kept = 0
        for tile in tiles:
            for begin in range(tile.low * keys, tile.high * keys, keys):
                read += min(-(-(tile.row.length - begin) // page), plan.pages) - max(tile.first - begin, 0) // page
                if tile.first // page * page > begin or begin + keys > tile.row.length:
                    cleaned += 1
                    ends = range(begin + page, begin + keys + 1, page)
                    cleaned_pages += sum(end <= tile.first or end > tile.row.length for end in ends)
        for row in rows:
            low = high = -(-row.own // page)
            if plan.kv_dtype == plan.dtype and (row.begin - row.own) % TILE_ALIGNMENT == 0:
                high = max(row.length // page, low)
            whole += high - low
            for chunk in range(row.own // keys, -(-row.length // keys)):
                first, last = max(row.own // page, chunk * plan.pages), (chunk + 1) * plan.pages
                pages = range(first, min(-(-row.length // page), last))
                chunks += 1
                others = [number for number in pages if not low <= number < high]
                if others:
                    written_chunks += 1
                    looped += len(pages)
                    partial += len(others)
                kept += sum(number * page < row.own or (number + 1) * page > row.length for number in pages)
        return cls(read, cleaned, cleaned_pages, chunks, whole, written_chunks, looped, partial, kept)

    def bytes_of(self, plan: PrefillPlan) -> int:
        """Of pages, and of the new keys and values; copies from memory to memory count twice."""
        page = 2 * plan.page * plan.lanes * jnp.dtype(plan.kv_dtype).itemsize
        fresh = 2 * (plan.blocks.keys + TILE_ALIGNMENT) * plan.lanes * jnp.dtype(plan.dtype).itemsize
        return (self.read + 2 * self.whole + self.partial + self.kept) * page + self.written_chunks * fresh
