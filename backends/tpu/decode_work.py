"""What one call of the decode kernel does on given lengths, for the static cost model."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
from jax.typing import DTypeLike

from ..kernel_work import KernelWork
from .cache import tile_rows
from .decode import DecodeBlocks, decode_shape
from .decode_copies import UNROLLED
from .decode_items import listing_turns, unit_rows
from .decode_shape import DecodeShape


def decode_work(
    kv_lens: Sequence[int],
    query_lens: Sequence[int],
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
) -> KernelWork:
    """The work of decode_attention for rows of these lengths; arguments as there and as in check_decode.

    `counts` has the turns of the loop, pages read, tiles written back, and pages whose values are cleared.
    """
    shape = decode_shape(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        page_size=page_size,
        kv_dtype=kv_dtype,
        generation=generation,
        table_width=table_width,
        window=window,
        max_decode_len=max_decode_len,
        blocks=blocks,
        token_scales=token_scales,
    )
    spans: list[int] = []  # positions from the first page that is seen, of each row
    rows = written = flops = 0
    for length, queries in zip(kv_lens, query_lens, strict=True):
        if not (1 <= queries <= max_decode_len and length >= 1):
            continue
        rows += 1
        begin = 0 if window is None else max(length - queries - window + 1, 0) // page_size * page_size
        spans.append(length - begin)
        unit = unit_rows(shape)
        written += 2 * ((length - 1) // unit - (length - queries) // unit + 1)
        for query in range(queries):
            seen = length - queries + query + 1
            flops += 4 * num_heads * head_dim * (seen if window is None else min(seen, window))

    def bytes_of(count: int, dtype: DTypeLike) -> int:
        return count * jnp.dtype(dtype).itemsize

    row_bytes = bytes_of(shape.lanes, shape.kv_dtype)
    raw = "bfloat16" if shape.by_hand else shape.matmul_dtype
    each_row = bytes_of(shape.num_chunks * shape.matmul_rows * shape.chunk_lanes, raw)
    each_row += bytes_of(shape.num_chunks * shape.rows * shape.chunk_lanes, jnp.float32)
    each_row += bytes_of(2 * max_decode_len * shape.lanes, jnp.uint32)
    trips: list[float] = []
    turns = pages = cleared = 0
    left = len(kv_lens)
    for of_pass in shape.passes:
        taken = [span for span in spans if of_pass.over < span <= (of_pass.most or span)]
        if of_pass.most is not None:
            trips.append(float(left > 0))
        found = _pass(of_pass, taken, len(kv_lens))
        trips += found.trips
        turns, pages, cleared = turns + found.turns, pages + found.pages, cleared + found.cleared
        left -= len(taken)
    hbm_bytes = pages * 2 * page_size * row_bytes + written * tile_rows(shape.kv_dtype) * row_bytes + rows * each_row
    if token_scales:
        hbm_bytes += pages * bytes_of(2 * page_size, jnp.float32)
    return KernelWork(
        trips=dict(enumerate(trips)),
        counts={"turns": turns, "pages": pages, "written": written, "cleared": cleared},
        hbm_bytes=hbm_bytes,
        flops=flops,
    )


@dataclass(frozen=True)
class _Pass:
    """One pass over the rows: trips of its loops in their order, and how often it does what."""

    trips: list[float]
    turns: int
    pages: int
    cleared: int


def _pass(shape: DecodeShape, spans: Sequence[int], num_rows: int) -> _Pass:
    """The pass that takes rows of these spans, of `num_rows` rows in all."""
    pages: list[int] = []  # of each item
    cleared = 0
    for span in spans:
        pages += [min(-(-(span - start) // shape.page), shape.block_pages) for start in range(0, span, shape.block)]
        if span % shape.block:
            cleared += shape.block_pages - span % shape.block // shape.page
    group = min(UNROLLED, shape.block_pages)
    listing = listing_turns(num_rows)
    trips: list[float] = [listing] if listing else []
    begin = 1 if shape.most is None else 0
    in_turns = pages[begin:]
    if begin:
        first = pages[0] if pages else 0
        trips += [first // group, first % group]
    turns = len(pages) + 3 - begin if pages else 0
    trips.append(turns)
    inside = [cleared]
    if shape.copies_at_once:
        inside = [sum(count // group for count in in_turns), sum(count % group for count in in_turns), cleared]
    trips += [count / max(turns, 1) for count in inside]
    return _Pass(trips, turns, sum(pages), cleared)
