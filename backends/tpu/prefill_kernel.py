"""Attention over pages for rows with many queries: fetching pages, and writing the new keys and values into them."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

from ..base import RaggedIndex
from ..token_places import TokenPlaces
from .cache import LANES
from .prefill_plan import TILE_ALIGNMENT, PrefillPlan
from .prefill_walk import Walk


@dataclass(frozen=True)
class PagedRows:
    """Rows of a mixed batch over a page table; those of at most `limit` queries are another kernel's.

    Args:
        ref: scratch by name: the walk's, and `write_scratch`.
        layer: i32[1] in SMEM, as are page_table [B * pages_per_row], query_starts [B + 1] and kv_lens [B].
        new: new keys and values [2, front + tokens + behind, lanes] in HBM: token t in row `front` + t.
        cache: pages [L, P, 2 * page, lanes] in HBM.
        mask: which of its row's new keys each token sees, fp32 [tokens, S] in HBM, as `shifted` lays it out; None is
            all up to itself.
        scales: of tokens, [L, P, 2, page] in HBM; None where pages have none.
    """

    plan: PrefillPlan
    ref: dict[str, Any]
    num_rows: int
    limit: int
    pages_per_row: int
    layer: Any
    page_table: Any
    query_starts: Any
    kv_lens: Any
    new: Any
    cache: Any
    mask: Any | None = None
    scales: Any | None = None

    def queries(self, row: Any) -> tuple[Any, Any]:
        return self.query_starts[row], self.query_starts[row + 1]

    def kv_len(self, row: Any) -> Any:
        return self.kv_lens[row]

    def ours(self, row: Any) -> Any:
        begin, end = self.queries(row)
        return end - begin > self.limit

    def visible(self, row: Any, tile_start: Any, key: Any, query: Any) -> Any | None:
        if self.mask is None:
            return None
        keys, here = self.plan.blocks.keys, self.ref["mask"]
        begin, end = self.queries(row)
        first = key[0, 0] - (self.kv_len(row) - (end - begin)) // keys * keys
        lanes = pl.ds(pl.multiple_of(jnp.maximum(first, 0), LANES), keys)
        rows = pl.ds(pl.multiple_of(tile_start, TILE_ALIGNMENT), self.plan.blocks.queries)
        pltpu.sync_copy(self.mask.at[rows, lanes], here)
        return (here[...].T > 0) | (first < 0)

    # Pages that are there

    def fetch(self, row: Any, chunk: Any, first: Any, slot: Any) -> None:
        def start(i: Any) -> None:
            for copy in self._fetch_page(row, chunk, i, slot):
                copy.start()

        self._for_pages(row, chunk, first, start)

    def arrive(self, row: Any, chunk: Any, first: Any, slot: Any) -> None:
        def wait(i: Any) -> None:
            for copy in self._fetch_page(row, chunk, i, slot):
                copy.wait()

        self._for_pages(row, chunk, first, wait)
        begin, end = chunk * self.plan.blocks.keys, (chunk + 1) * self.plan.blocks.keys
        whole = (first // self.plan.page * self.plan.page <= begin) & (end <= self.kv_len(row))
        pl.when(jnp.logical_not(whole))(lambda: self._clean(row, chunk, first, slot))

    def _for_pages(self, row: Any, chunk: Any, first: Any, body: Any) -> None:
        """Of the pages of a chunk, those that hold something needed."""
        page, begin = self.plan.page, chunk * self.plan.blocks.keys
        low = jnp.maximum(first - begin, 0) // page
        high = jnp.minimum(pl.cdiv(self.kv_len(row) - begin, page), self.plan.pages)
        jax.lax.fori_loop(low, high, lambda i, carry: body(i) or carry, 0)

    def _page(self, row: Any, page: Any) -> Any:
        return self.cache.at[self.layer[0], self.page_table[row * self.pages_per_row + page]]

    def _fetch_page(self, row: Any, chunk: Any, i: Any, slot: Any) -> list[Any]:
        """Of a page and, where tokens have them, of its scales."""
        page, ref = chunk * self.plan.pages + i, self.ref
        copies = [pltpu.make_async_copy(self._page(row, page), ref["kv"].at[slot, i], ref["kv_arrived"].at[slot])]
        if self.scales is not None:
            there = self.scales.at[self.layer[0], self.page_table[row * self.pages_per_row + page]]
            copies.append(pltpu.make_async_copy(there, ref["scales"].at[slot, i], ref["scales_arrived"].at[slot]))
        return copies

    def _clean(self, row: Any, chunk: Any, first: Any, slot: Any) -> None:
        """Zeros where nothing was fetched or written: a weight of 0 does not undo a NaN."""
        page = self.plan.page

        def of_page(i: Any, carry: Any) -> Any:
            begin = chunk * self.plan.blocks.keys + i * page
            written = jnp.where(begin + page <= first, 0, jnp.clip(self.kv_len(row) - begin, 0, page))

            @pl.when(written < page)
            def _() -> None:
                held = self.ref["kv"][slot, i].astype(jnp.float32)
                at = jax.lax.broadcasted_iota(jnp.int32, held.shape, 0) % page
                self.ref["kv"][slot, i] = jnp.where(at < written, held, 0).astype(self.plan.kv_dtype)

            return carry

        jax.lax.fori_loop(0, self.plan.pages, of_page, 0)

    # New keys and values

    def begin(self, row: Any) -> None:
        """Writes the row's new keys and values into its pages: whole pages from memory to memory, where tokens and
        positions are aligned and of one type, the rest a chunk of positions at a time."""
        plan = self.plan
        begin, end = self.queries(row)
        length = self.kv_len(row)
        own = length - (end - begin)

        def chunk_pages(chunk: Any) -> tuple[Any, Any]:
            first = jnp.maximum(own // plan.page, chunk * plan.pages)
            return first, jnp.minimum(pl.cdiv(length, plan.page), (chunk + 1) * plan.pages)

        def of_chunks(body: Any) -> None:
            chunks = own // plan.blocks.keys, pl.cdiv(length, plan.blocks.keys)
            jax.lax.fori_loop(*chunks, lambda chunk, carry: body(chunk, chunk_pages(chunk)) or carry, 0)

        if plan.kv_dtype != plan.dtype:
            of_chunks(lambda chunk, pages: self._write_chunk(row, chunk, own, begin, pages))
            return
        low = pl.cdiv(own, plan.page)
        high = jnp.where((begin - own) % TILE_ALIGNMENT == 0, jnp.maximum(length // plan.page, low), low)

        def of_whole(body: Any) -> None:
            def some(number: Any, carry: Any) -> Any:
                for copy in self._copy_whole(row, number, begin - own):
                    body(copy)
                return carry

            jax.lax.fori_loop(low, high, some, 0)

        def of_chunk(chunk: Any, pages: tuple[Any, Any]) -> None:
            some = (low == high) | (pages[0] < low) | (pages[1] > high)
            pl.when(some)(lambda: self._write_chunk(row, chunk, own, begin, pages, (low, high)))

        of_whole(lambda copy: copy.start())
        of_chunks(of_chunk)
        of_whole(lambda copy: copy.wait())

    def _copy_whole(self, row: Any, number: Any, offset: Any) -> list[Any]:
        """Of a page's keys and of its values; position p of the row is token p + offset."""
        page, there = self.plan.page, self._page(row, number)
        token = pl.multiple_of(front(self.plan) + number * page + offset, TILE_ALIGNMENT)
        return [
            pltpu.make_async_copy(
                self.new.at[half, pl.ds(token, page)],
                there.at[pl.ds(half * page, page)],
                self.ref["whole_moved"],
            )
            for half in (0, 1)
        ]

    def _write_chunk(
        self,
        row: Any,
        chunk: Any,
        own: Any,
        begin: Any,
        pages: tuple[Any, Any],
        whole: tuple[Any, Any] | None = None,
    ) -> None:
        """Writes the pages from one to before another, without those that are copied as a whole."""
        plan, ref = self.plan, self.ref
        keys, page = plan.blocks.keys, plan.page
        token = begin + chunk * keys - own + front(plan)
        aligned = pl.multiple_of(token // TILE_ALIGNMENT * TILE_ALIGNMENT, TILE_ALIGNMENT)
        fresh = pltpu.make_async_copy(
            self.new.at[:, pl.ds(aligned, keys + TILE_ALIGNMENT)], ref["new"], ref["new_arrived"]
        )
        fresh.start()

        def of_pages(body: Any) -> None:
            def some(number: Any, carry: Any) -> Any:
                ours = True if whole is None else (number < whole[0]) | (number >= whole[1])
                pl.when(ours)(lambda: body(number))
                return carry

            jax.lax.fori_loop(*pages, some, 0)

        def kept(number: Any) -> Any:
            """Whether a page holds positions that are not new."""
            return (number * page < own) | ((number + 1) * page > self.kv_len(row))

        def copy(number: Any, *, back: bool) -> Any:
            there, here = (self._page(row, number), ref["pages"].at[number - chunk * plan.pages])
            source, target = (here, there) if back else (there, here)
            return pltpu.make_async_copy(source, target, ref["page_moved"])

        def bring(number: Any) -> None:
            @pl.when(kept(number))
            def _() -> None:
                copy(number, back=False).start()
                copy(number, back=False).wait()

        of_pages(bring)
        fresh.wait()

        # As fp32 with one register's lanes per row: there, rows can be read from any row on.
        def spread(at: Any, carry: Any) -> Any:
            lane = pl.multiple_of(at * LANES, LANES)
            for i in range(2):
                ref["spread"][i, at] = ref["new"][i, :, pl.ds(lane, LANES)].astype(jnp.float32)
            return carry

        jax.lax.fori_loop(0, plan.lanes // LANES, spread, 0)

        def fill(number: Any) -> None:
            i = number - chunk * plan.pages
            row_of_page = jax.lax.broadcasted_iota(jnp.int32, (2 * page, LANES), 0) % page
            position = number * page + row_of_page
            is_new = (position >= own) & (position < self.kv_len(row))

            def lanes(at: Any, carry: Any) -> Any:
                lane = pl.multiple_of(at * LANES, LANES)
                rows = pl.ds(token - aligned + i * page, page)
                fresh = jnp.concatenate([ref["spread"][0, at, rows], ref["spread"][1, at, rows]])
                held = ref["pages"][i, :, pl.ds(lane, LANES)].astype(jnp.float32)
                ref["pages"][i, :, pl.ds(lane, LANES)] = jnp.where(is_new, fresh, held).astype(plan.kv_dtype)
                return carry

            jax.lax.fori_loop(0, plan.lanes // LANES, lanes, 0)
            copy(number, back=True).start()

        of_pages(fill)
        of_pages(lambda number: copy(number, back=True).wait())


def front(plan: PrefillPlan) -> int:
    """Rows before the first new key: the first chunk of positions may begin before the first new one."""
    return plan.blocks.keys


def behind(plan: PrefillPlan) -> int:
    """Rows after the last new key."""
    return plan.blocks.keys + TILE_ALIGNMENT


def shifted(
    plan: PrefillPlan, mask: Bool[Array, "T queries"], index: RaggedIndex, padded: int
) -> Float[Array, "tokens S"]:
    """A mask whose columns begin where the chunk begins that has a row's first new key; ones for keys before that.

    So each chunk of keys finds its part at a multiple of its size.
    """
    keys, num_tokens = plan.blocks.keys, mask.shape[0]
    tokens = TokenPlaces.of(num_tokens, index)
    most = min(num_tokens, index.max_query_len or num_tokens)
    columns = jnp.arange((-(-most // keys) + 1) * keys)
    new = columns - ((tokens.position - tokens.offset) % keys)[:, None]
    seen = jnp.take_along_axis(mask, jnp.clip(new, 0, mask.shape[1] - 1), axis=1) & (new < mask.shape[1])
    return jnp.pad((seen | (new < 0)).astype(jnp.float32), ((0, padded - num_tokens), (0, 0)))


def write_scratch(plan: PrefillPlan) -> dict[str, Any]:
    """What PagedRows needs beside the walk's scratch."""
    keys = plan.blocks.keys + TILE_ALIGNMENT
    return {
        "new": pltpu.VMEM((2, keys, plan.lanes), plan.dtype),
        "spread": pltpu.VMEM((2, plan.lanes // LANES, keys, LANES), jnp.float32),
        "pages": pltpu.VMEM((plan.pages, 2 * plan.page, plan.lanes), plan.kv_dtype),
        "new_arrived": pltpu.SemaphoreType.DMA(()),
        "page_moved": pltpu.SemaphoreType.DMA(()),
        "whole_moved": pltpu.SemaphoreType.DMA(()),
        **({"mask": pltpu.VMEM((plan.blocks.queries, plan.blocks.keys), jnp.float32)} if plan.extra_mask else {}),
    }


def prefill_kernel(
    layer: Any,
    page_table: Any,
    query_starts: Any,
    kv_lens: Any,
    *refs: Any,
    plan: PrefillPlan,
    limit: int,
    pages_per_row: int,
) -> None:
    """Operands q, new, cache, [mask], [scales], [sinks]; results out, cache, [lse]; scratch."""
    q, new, _, *rest = refs
    mask = rest.pop(0) if plan.extra_mask else None
    scales = rest.pop(0) if plan.token_scales else None
    sinks = rest.pop(0) if plan.sinks else None
    out, cache = rest.pop(0), rest.pop(0)
    lse = rest.pop(0) if plan.return_lse else None
    (ref,) = rest
    num_rows = kv_lens.shape[0]
    table = (pages_per_row, layer, page_table, query_starts, kv_lens)
    rows = PagedRows(plan, ref, num_rows, limit, *table, new, cache, mask, scales)
    Walk(plan, ref, rows, q, out, lse, sinks).run()
