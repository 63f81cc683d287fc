"""Ragged paged decode attention, with the write-back of new keys and values: one pass over all rows' pages.

The blocks of all rows form one sequence of items. A turn of the loop works on five of them, so that no unit waits for
another:

    item t      its pages are asked for, and the next item's queries
    item t - 1  its pages have come: new keys and values are merged in and sent back; scores = keys x queries
    item t - 2  probabilities = softmax of its scores
    item t - 3  products = probabilities x values
    item t - 4  products are added to the row's output, which leaves after the row's last item

Rows that are empty, or that have more queries than this kernel handles, are no items.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .cache import tile_rows
from .decode_mxu import CompilerMatmul, HandMatmul, Ref, with_units
from .decode_shape import MXU, DecodeShape

SLOTS = 4
"""Blocks in memory at once."""

_ITEMS = 8  # a ring of what is known about items, fields of each:
_ROW, _START, _PAGES, _FIRST, _LAST, _UNITS, _ORDINAL, _FIELDS = 0, 1, 2, 3, 4, 5, 6, 8

_LOWEST = -1e30
_LN_2 = 0.6931471805599453


# Divisors are powers of two, which scalar units do not know unless they are told.


def _quotient(x: Any, divisor: int) -> Any:
    return x >> (divisor.bit_length() - 1)


def _remainder(x: Any, divisor: int) -> Any:
    return x & (divisor - 1)


def _rounded_up(x: Any, divisor: int) -> Any:
    """Quotient, rounded up."""
    return _quotient(x + (divisor - 1), divisor)


def _slot(item: Any) -> Any:
    return item & (SLOTS - 1)


def _ring(item: Any) -> Any:
    return item & (_ITEMS - 1)


@dataclass(frozen=True)
class DecodeCall:
    """The static part of a call. `sinks`: whether there are any. `lse`: whether to return log-sum-exps, in a further
    128 lanes of the output. `emulate`: matrix units are imitated."""

    shape: DecodeShape
    window: int | None
    soft_cap: float | None
    sinks: bool
    lse: bool
    emulate: bool

    @property
    def out_lanes(self) -> int:
        return self.shape.chunk_lanes + 128 * self.lse

    @property
    def unit_rows(self) -> int:
        """Positions that are written back together: an aligned tile, or a page if that is smaller."""
        return min(tile_rows(self.shape.kv_dtype), self.shape.page)

    @property
    def max_units(self) -> int:
        """Units that the new positions of a row can touch."""
        return 1 if self.shape.max_queries == 1 else 2 + (self.shape.max_queries - 2) // self.unit_rows

    def scratch(self) -> dict[str, Any]:
        shape = self.shape
        chunks, rows = shape.num_chunks, shape.rows
        raw = "bfloat16" if shape.by_hand else shape.matmul_dtype
        sems = pltpu.SemaphoreType.DMA
        made = {
            "kv": pltpu.VMEM((SLOTS, shape.block_pages, 2 * shape.page, shape.lanes), shape.kv_dtype),
            "raw": pltpu.VMEM((SLOTS, chunks, shape.matmul_rows, shape.chunk_lanes), raw),
            "new": pltpu.VMEM((SLOTS, shape.max_queries, 2, shape.lanes), jnp.uint32),
            "scores": pltpu.VMEM((chunks, rows, shape.block), jnp.float32),
            "weights": pltpu.VMEM((chunks, shape.matmul_rows, shape.block), shape.matmul_dtype),
            "products": pltpu.VMEM((chunks, rows, shape.chunk_lanes), jnp.float32),
            "sums": pltpu.VMEM((chunks, rows, shape.chunk_lanes), jnp.float32),
            "top": pltpu.VMEM((chunks, rows, 1), jnp.float32),
            "tops": pltpu.VMEM((_ITEMS, chunks, rows, 1), jnp.float32),
            "totals": pltpu.VMEM((_ITEMS, chunks, rows, 1), jnp.float32),
            "decays": pltpu.VMEM((_ITEMS, chunks, rows, 1), jnp.float32),
            "out": pltpu.VMEM((2, chunks, rows, self.out_lanes), jnp.float32),
            "items": pltpu.SMEM((_ITEMS * _FIELDS,), jnp.int32),
            "page_sems": sems((SLOTS,)),
            "raw_sems": sems((SLOTS,)),
            "new_sems": sems((SLOTS,)),
            "back_sems": sems((SLOTS,)),
            "out_sems": sems((2,)),
        }
        if shape.by_hand:
            made["columns"] = pltpu.VMEM((2, chunks, MXU, MXU), shape.matmul_dtype)
        return made


@dataclass(frozen=True)
class DecodeKernel:
    """One run. `refs` are those of DecodeCall.scratch and, by name, the operands; see `decode_kernel`."""

    call: DecodeCall
    refs: dict[str, Ref]

    def __getattr__(self, name: str) -> Ref:
        try:
            return self.refs[name]
        except KeyError:
            raise AttributeError(name) from None

    def run(self) -> None:
        shape = self.call.shape
        if not shape.by_hand:
            self._loop(CompilerMatmul(shape, self.scores, self.products))
            return
        self.columns[...] = jnp.zeros(self.columns.shape, self.columns.dtype)
        with_units(
            shape,
            self.call.emulate,
            lambda units: self._loop(HandMatmul(shape, self.scores, self.columns, units)),
        )

    def _loop(self, matmul: CompilerMatmul | HandMatmul) -> None:
        num_rows, num_items = self._list_rows()
        for item in range(_ITEMS):
            self._forget(item)
        self.sums[...] = jnp.zeros(self.sums.shape, jnp.float32)
        self._fetch_queries(num_rows > 0, 0)
        place = self._plan(0, num_items, num_rows, jnp.int32(0), jnp.int32(0))
        self._fetch(0, num_rows)

        def turn(t: jax.Array, place: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            place = self._plan(t, num_items, num_rows, *place)
            self._await(t)
            self._merge_new(t - 1)
            self._add_products(t - 4, matmul.collect())
            weights = [self.weights[chunk] for chunk in range(self.call.shape.num_chunks)]
            self._softmax(t - 2)
            matmul.step(
                self.raw.at[_slot(self._get(t - 1, _ORDINAL))],
                (t - 1) & 1,
                self._loader(t - 1, 0),
                weights,
                self._loader(t - 3, 1),
            )
            matmul.prepare(self.raw.at[_slot(self._get(t, _ORDINAL))], t & 1)
            # Copies start last: what is read and written above then need not wait for them.
            self._fetch(t, num_rows)
            self._send_output(t - 4)
            self._send_new(t - 1)
            return place

        lax.fori_loop(1, num_items + 4, turn, place)
        matmul.finish()
        for back in (2, 1):
            pl.when(num_rows >= back)(lambda back=back: self._output_copy(0, (num_rows - back) & 1).wait())

    # What is known about rows and items.

    def _list_rows(self) -> tuple[jax.Array, jax.Array]:
        """Lists the rows to handle in `rows`; returns how many they are and how many items they have."""

        def add(row: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            num_rows, num_items = found
            queries, length = self.q_lens[row], self.kv_lens[row]
            ours = (queries >= 1) & (queries <= self.call.shape.max_queries) & (length >= 1)
            self.rows[num_rows] = row
            return num_rows + ours.astype(jnp.int32), num_items + jnp.where(ours, self._num_blocks(row), 0)

        return lax.fori_loop(0, self.q_lens.shape[0], add, (jnp.int32(0), jnp.int32(0)))

    def _first_page(self, row: jax.Array) -> jax.Array | int:
        """The first page that a query of the row sees."""
        if self.call.window is None:
            return 0
        lowest = self.kv_lens[row] - self.q_lens[row] - self.call.window + 1
        return _quotient(jnp.maximum(lowest, 0), self.call.shape.page)

    def _num_blocks(self, row: jax.Array) -> jax.Array:
        positions = self.kv_lens[row] - self._first_page(row) * self.call.shape.page
        return _rounded_up(positions, self.call.shape.block)

    def _get(self, item: jax.Array, field: int) -> jax.Array:
        return self.items[_ring(item) * _FIELDS + field]

    def _set(self, item: jax.Array | int, **fields: Any) -> None:
        names = {"row": _ROW, "start": _START, "pages": _PAGES, "first": _FIRST, "last": _LAST, "units": _UNITS}
        names["ordinal"] = _ORDINAL
        for name, value in fields.items():
            self.items[_ring(item) * _FIELDS + names[name]] = jnp.asarray(value, jnp.int32)

    def _forget(self, item: int) -> None:
        self._set(item, row=0, start=0, pages=0, first=1, last=0, units=0, ordinal=0)

    # Copies.

    def _fetch_queries(self, wanted: jax.Array, ordinal: jax.Array | int) -> None:
        row = self.rows[jnp.where(wanted, ordinal, 0)]
        pl.when(wanted)(lambda: self._queries_copy(row, ordinal).start())

    def _queries_copy(self, row: jax.Array | int, ordinal: jax.Array | int) -> Any:
        slot = _slot(ordinal)
        return pltpu.make_async_copy(self.q.at[row], self.raw.at[slot], self.raw_sems.at[slot])

    def _new_copy(self, row: jax.Array, slot: jax.Array) -> Any:
        return pltpu.make_async_copy(self.new_kv.at[row], self.new.at[slot], self.new_sems.at[slot])

    def _output_copy(self, row: jax.Array | int, slot: jax.Array) -> Any:
        return pltpu.make_async_copy(self.out.at[slot], self.output.at[row], self.out_sems.at[slot])

    def _plan(
        self, t: jax.Array | int, num_items: jax.Array, num_rows: jax.Array, ordinal: jax.Array, block: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Notes down item t: block `block` of the listed row `ordinal`. Returns the place of the item after it."""
        shape, unit = self.call.shape, self.call.unit_rows
        exists = t < num_items
        row = jnp.where(exists, self.rows[jnp.clip(ordinal, 0, jnp.maximum(num_rows - 1, 0))], 0)
        length, queries = self.kv_lens[row], self.q_lens[row]
        start = self._first_page(row) * shape.page + block * shape.block
        pages = jnp.minimum(_rounded_up(length - start, shape.page), shape.block_pages)
        last = start + shape.block >= length
        lowest = jnp.maximum(_quotient(length - queries, unit), _quotient(start, unit))
        highest = jnp.minimum(_quotient(length - 1, unit), _quotient(start + shape.block, unit) - 1)
        self._set(
            t,
            row=row,
            start=start,
            pages=jnp.where(exists, pages, 0),
            first=(block == 0) | ~exists,
            last=last & exists,
            units=jnp.where(exists, jnp.maximum(highest - lowest + 1, 0), 0),
            ordinal=ordinal,
        )
        return ordinal + (last & exists).astype(jnp.int32), jnp.where(last, 0, block + 1)

    def _fetch(self, t: jax.Array | int, num_rows: jax.Array) -> None:
        """Asks for item t, and for the queries of the row after it."""
        shape, slot = self.call.shape, _slot(t)
        row, pages = self._get(t, _ROW), self._get(t, _PAGES)
        entry = row * self.table_width + _quotient(self._get(t, _START), shape.page)
        for page in range(shape.block_pages):

            def fetch(page: int = page) -> None:
                source = self.cache.at[self.layer[0], self.table[entry + page]]
                pltpu.make_async_copy(source, self.kv.at[slot, page], self.page_sems.at[slot]).start()

            pl.when(page < pages)(fetch)
        pl.when(self._get(t, _UNITS) > 0)(lambda: self._new_copy(row, slot).start())
        following = self._get(t, _ORDINAL) + 1
        self._fetch_queries((self._get(t, _LAST) > 0) & (following < num_rows), following)

    def _await(self, t: jax.Array) -> None:
        """Waits for what item t - 1 brings, and for what has to be gone from memory that this turn writes to."""
        slot, pages = _slot(t - 1), self._get(t - 1, _PAGES)
        size = 1
        while size <= self.call.shape.block_pages:

            def wait(size: int = size) -> None:
                some = self.kv.at[slot, pl.ds(0, size)]
                pltpu.make_async_copy(some, some, self.page_sems.at[slot]).wait()

            pl.when((pages & size) > 0)(wait)
            size *= 2
        awaited = t if self.call.shape.by_hand else t - 1
        begins = (self._get(awaited, _FIRST) > 0) & (self._get(awaited, _PAGES) > 0)
        pl.when(begins)(lambda: self._queries_copy(0, self._get(awaited, _ORDINAL)).wait())
        pl.when(self._get(t - 1, _UNITS) > 0)(lambda: self._new_copy(0, slot).wait())
        self._await_write_back(t - SLOTS)
        leaving = self._get(t - 4, _ORDINAL)
        begins = (self._get(t - 4, _FIRST) > 0) & (self._get(t - 4, _PAGES) > 0)
        pl.when(begins & (leaving >= 2))(lambda: self._output_copy(0, leaving & 1).wait())

    # New keys and values.

    def _write_back(self, item: jax.Array) -> list[tuple[jax.Array, Any]]:
        """Copies of the tiles that hold an item's new keys or values, each with whether it is wanted."""
        shape, unit, tile = self.call.shape, self.call.unit_rows, tile_rows(self.call.shape.kv_dtype)
        row, start, slot = self._get(item, _ROW), self._get(item, _START), _slot(item)
        first = jnp.maximum((self.kv_lens[row] - self.q_lens[row]) & -unit, start)
        found = []
        for number in range(self.call.max_units):
            wanted, position = self._get(item, _UNITS) > number, first + number * unit
            page, offset = _quotient(position - start, shape.page), _remainder(position, shape.page)
            target = self.table[jnp.where(wanted, row * self.table_width + _quotient(position, shape.page), 0)]
            for half in (0, 1):
                rows = pl.ds(pl.multiple_of((half * shape.page + offset) & -tile, tile), tile)
                copy = pltpu.make_async_copy(
                    self.kv.at[slot, page, rows], self.cache.at[self.layer[0], target, rows], self.back_sems.at[slot]
                )
                found.append((wanted, copy))
        return found

    def _await_write_back(self, item: jax.Array) -> None:
        for wanted, copy in self._write_back(item):
            pl.when(wanted)(copy.wait)

    def _send_new(self, item: jax.Array) -> None:
        for wanted, copy in self._write_back(item):
            pl.when(wanted)(copy.start)

    def _merge_new(self, item: jax.Array) -> None:
        """Puts new keys and values into an item's block, and clears the values of positions that were never written:
        zero times NaN is NaN."""
        row, start, slot = self._get(item, _ROW), self._get(item, _START), _slot(item)
        for query in range(self.call.shape.max_queries):
            position = self.kv_lens[row] - self.q_lens[row] + query - start
            here = (query < self.q_lens[row]) & (position >= 0) & (position < self.call.shape.block)
            if self.call.shape.max_queries == 1:
                self._merge_one(slot, query, position, here)
            else:
                pl.when(here)(partial(self._merge_one, slot, query, position, here))
        written = self.kv_lens[row] - start
        pl.when((self._get(item, _LAST) > 0) & (written < self.call.shape.block))(lambda: self._clear(slot, written))

    def _merge_one(self, slot: jax.Array, query: int, position: jax.Array, here: jax.Array) -> None:
        """Writes a new key and value to a position of a block; nothing unless it is `here`."""
        shape, words, (pack, bits) = self.call.shape, self.kv.bitcast(jnp.uint32), self._packing()
        position = jnp.where(here, position, 0)
        for half in (0, 1):
            line = half * shape.page + _remainder(position, shape.page)
            tile = pl.ds(pl.multiple_of(_quotient(line, pack) & -8, 8), 8)
            own = jnp.where(here, self._bits(bits) << bits * _remainder(line, pack), 0)
            own = jnp.where(self._lines() == _remainder(_quotient(line, pack), 8), own, 0).astype(jnp.uint32)
            block = words.at[slot, _quotient(position, shape.page), tile]
            block[...] = (block[...] & ~own) | (self.new[slot, query, half : half + 1] & own)

    def _packing(self) -> tuple[int, int]:
        """Numbers in a 32-bit word, and bits of one."""
        pack = tile_rows(self.call.shape.kv_dtype) // 8
        return pack, 32 // pack

    @staticmethod
    def _lines() -> jax.Array:
        return lax.broadcasted_iota(jnp.int32, (8, 1), 0)

    @staticmethod
    def _bits(count: int) -> jax.Array:
        return jnp.int32(-1 if count == 32 else (1 << count) - 1)

    def _clear(self, slot: jax.Array, written: jax.Array) -> None:
        """Zeroes the values of a block from position `written` on."""
        shape, (pack, bits) = self.call.shape, self._packing()
        words, lines = self.kv.bitcast(jnp.uint32), shape.page // pack

        def clear(page: jax.Array, _: None) -> None:
            kept = jnp.clip(
                written - page * shape.page - lax.broadcasted_iota(jnp.int32, (lines, 1), 0) * pack, 0, pack
            )
            mask = jnp.where(kept == pack, -1, jnp.left_shift(1, jnp.minimum(kept, pack - 1) * bits) - 1)
            block = words.at[slot, page, lines:]
            block[...] = block[...] & mask.astype(jnp.uint32)

        lax.fori_loop(_quotient(written, shape.page), shape.block_pages, clear, None)

    # Arithmetic.

    def _loader(self, item: jax.Array, half: int) -> Callable[[int, int, int], jax.Array]:
        """Reads keys (half 0) or values (1) of an item's block."""
        shape, slot = self.call.shape, _slot(item)

        def load(first: int, count: int, chunk: int) -> jax.Array:
            lane, width = shape.chunk_span(chunk)
            pages, lanes = pl.ds(first // shape.page, count // shape.page), pl.ds(lane, width)
            if tile_rows(shape.kv_dtype) <= shape.page:
                rows = pl.ds(half * shape.page, shape.page)
                return self.kv[slot, pages, rows, lanes].reshape(count, width)
            # A tile holds 16 keys and 16 values: join the same half of two tiles.
            both = self.kv.bitcast(jnp.uint32)[slot, pages, :, lanes].reshape(-1, 2, 8, width)
            even, odd = both[:, 0], both[:, 1]
            upper = lax.broadcasted_iota(jnp.int32, even.shape, 1) < 4
            if half == 0:
                joined = jnp.where(upper, even, pltpu.roll(odd, 4, 1))
            else:
                joined = jnp.where(upper, pltpu.roll(even, 4, 1), odd)
            return pltpu.bitcast(joined.reshape(-1, width), jnp.dtype(shape.kv_dtype))

        return load

    def _softmax(self, item: jax.Array) -> None:
        """Turns an item's scores into weights, relative to the largest score so far."""
        shape, row, start = self.call.shape, self._get(item, _ROW), self._get(item, _START)
        first = self._get(item, _FIRST) > 0
        length, queries = self.kv_lens[row], self.q_lens[row]
        position = start + lax.broadcasted_iota(jnp.int32, (8, shape.block), 1)
        shift = math.log2(shape.full_scale)
        visible = [self._visible(position, row, query, length, queries) for query in range(shape.max_queries)]
        repeat = shape.token_rows // 8
        masks = jnp.concatenate([mask for mask in visible for _ in range(repeat)], axis=0)
        for chunk in range(shape.num_chunks):
            scores = self.scores[chunk]
            if shape.split:
                factors = [self.q_scale[row * shape.max_queries + query] for query in range(shape.max_queries)]
                if shape.max_queries == 1:
                    scores = scores * factors[0]
                else:
                    rows = [jnp.full((shape.token_rows, 1), factor, jnp.float32) for factor in factors]
                    scores = scores * jnp.concatenate(rows, axis=0)
            if self.call.soft_cap is not None:
                scores = jnp.tanh(scores) * (self.call.soft_cap / _LN_2)
            scores = jnp.where(masks, scores, -jnp.inf)
            begin_top = self.sinks[chunk] if self.call.sinks else _LOWEST
            begin_total = 2.0**shift if self.call.sinks else 0.0
            before = jnp.where(first, begin_top, self.top[chunk])
            total = jnp.where(first, begin_total, self.totals[_ring(item - 1), chunk])
            top = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
            decay = jnp.exp2(before - top)
            weights = jnp.exp2(scores - (top - shift))
            self.top[chunk] = top
            self.tops[_ring(item), chunk] = top
            self.decays[_ring(item), chunk] = decay
            self.totals[_ring(item), chunk] = total * decay + jnp.sum(weights, axis=1, keepdims=True)
            self.weights[chunk] = self._packed(weights)

    def _visible(
        self, position: jax.Array, row: jax.Array, query: int, length: jax.Array, queries: jax.Array
    ) -> jax.Array:
        """Which positions one of the row's queries sees."""
        if self.call.shape.max_queries == 1:
            visible = position < length
        else:
            new = position - (length - queries)
            seen = jnp.right_shift(self.seen[row * self.call.shape.max_queries + query], jnp.clip(new, 0, 31)) & 1
            visible = (new < 0) | ((new < queries) & (seen > 0))
        if self.call.window is not None:
            visible &= position > length - queries + query - self.call.window
        return visible

    def _packed(self, weights: jax.Array) -> jax.Array:
        """Weights as the matrix unit takes them."""
        shape = self.call.shape
        parts = [weights]
        if shape.matmul_dtype == "int8":
            whole = (weights + 0.5).astype(jnp.int32)
            parts = [jnp.right_shift(whole, 7), whole & 127]
        elif shape.split:
            high = weights.astype(shape.matmul_dtype).astype(jnp.float32)
            parts = [high, weights - high]
        missing = shape.matmul_rows - len(parts) * shape.rows
        if missing:
            parts.append(jnp.zeros((missing, shape.block), parts[0].dtype))
        return jnp.concatenate(parts, axis=0).astype(shape.matmul_dtype)

    def _add_products(self, item: jax.Array, products: list[jax.Array]) -> None:
        """Adds an item's products to its row's sums, and leaves the row's output so far for `_send_output`."""
        shape, ring, slot = self.call.shape, _ring(item), self._get(item, _ORDINAL) & 1
        first = self._get(item, _FIRST) > 0
        shift = math.log2(shape.full_scale)
        for chunk, product in enumerate(products):
            sums = jnp.where(first, 0.0, self.sums[chunk] * self.decays[ring, chunk]) + product
            self.sums[chunk] = sums
            total = self.totals[ring, chunk]
            self.out[slot, chunk, :, : shape.chunk_lanes] = sums * (1 / jnp.maximum(total, 1e-30))
            if self.call.lse:
                lse = (self.tops[ring, chunk] + jnp.log2(total) - shift) * _LN_2
                self.out[slot, chunk, :, shape.chunk_lanes :] = jnp.broadcast_to(lse, (shape.rows, 128))

    def _send_output(self, item: jax.Array) -> None:
        """Sends a row's output after its last item."""
        slot, row = self._get(item, _ORDINAL) & 1, self._get(item, _ROW)
        pl.when(self._get(item, _LAST) > 0)(lambda: self._output_copy(row, slot).start())


def decode_kernel(*refs: Ref, call: DecodeCall, table_width: int) -> None:
    """The Pallas body.

    Operands, in this order: layer [1], kv_lens [B], q_lens [B], table [B * pages], q_scale [B * Q], seen [B * Q] as
    scalars; q and new_kv in HBM; sinks if the call has them; the cache. Results: output and the cache, aliased.
    """
    names = ["layer", "kv_lens", "q_lens", "table", "q_scale", "seen", "q", "new_kv"]
    names += ["sinks"] if call.sinks else []
    names += ["cache_in", "output", "cache", *call.scratch(), "rows"]
    DecodeKernel(call, {**dict(zip(names, refs, strict=True)), "table_width": table_width}).run()
