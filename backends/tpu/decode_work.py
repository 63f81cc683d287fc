"""What one call of the decode kernel does on given lengths, for the static cost model."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import DTypeLike

from ..kernel_work import KernelWork
from .cache import tile_rows
from .decode import DecodeBlocks, decode_shape
from .decode_copies import UNROLLED
from .decode_items import listing_turns, unit_rows


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
        max_decode_len=max_decode_len,
        blocks=blocks,
    )
    pages: list[int] = []  # of each item
    rows = written = cleared = flops = 0
    for length, queries in zip(kv_lens, query_lens, strict=True):
        if not (1 <= queries <= max_decode_len and length >= 1):
            continue
        rows += 1
        begin = 0 if window is None else max(length - queries - window + 1, 0) // page_size * page_size
        for start in range(begin, length, shape.block):
            pages.append(min(-(-(length - start) // page_size), shape.block_pages))
        if (length - begin) % shape.block:
            cleared += shape.block_pages - (length - begin) % shape.block // page_size
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
    hbm_bytes = (
        sum(pages) * 2 * page_size * row_bytes + written * tile_rows(shape.kv_dtype) * row_bytes + rows * each_row
    )

    if token_scales:
        hbm_bytes += sum(pages) * bytes_of(2 * page_size, jnp.float32)
    turns = len(pages) + 2
    group = min(UNROLLED, shape.block_pages)
    first = pages[0] if pages else 0
    listing = listing_turns(len(kv_lens))
    trips: list[float] = [*([listing] if listing else []), first // group, first % group, turns]
    if shape.copies_at_once:
        trips += [sum(count // group for count in pages[1:]) / turns, sum(count % group for count in pages[1:]) / turns]
    trips.append(cleared / turns)
    return KernelWork(
        trips=dict(enumerate(trips)),
        counts={"turns": turns, "pages": sum(pages), "written": written, "cleared": cleared},
        hbm_bytes=hbm_bytes,
        flops=flops,
    )
