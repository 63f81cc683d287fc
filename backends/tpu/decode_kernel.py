"""Ragged paged decode attention, with the write-back of new keys and values: one pass over all rows' pages.

The blocks of all rows form one sequence of items. A turn of the loop works on five of them, so that no unit waits for
another:

    item t      its pages are asked for, and the queries of the row after it
    item t - 1  its pages have come: new keys and values are merged in and sent back; scores = keys x queries
    item t - 2  weights = softmax of its scores
    item t - 3  products = weights x values
    item t - 4  products are added to the row's output, which leaves after the row's last item

Rows that are empty, or that have more queries than this kernel handles, are no items. A turn takes as long however
little of its block there is, so short rows are left out at first, and then taken by turns of shorter blocks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .cache import tile_rows
from .decode_call import DecodeCall
from .decode_copies import Copies, slot_of
from .decode_items import RING, Item, Items, quotient, remainder
from .decode_mxu import CompilerMatmul, HandMatmul, Ref, apart, with_units
from .decode_shape import DecodeShape

_LOWEST = -1e30
_LN_2 = math.log(2)


def decode_kernel(*refs: Ref, call: DecodeCall, table_width: int) -> None:
    """The Pallas body.

    Operands, in this order: layer [1], kv_lens [B], q_lens [B], table [B * pages], places [B] (of a row's queries, new
    keys and output in their arrays), q_scale [B * Q] where queries are split, seen [B * Q] where rows have several, as
    scalars; q and new_kv in HBM; sinks, and scales of tokens [L, P, 2, page] in HBM, if the call has them; the cache.
    Results: output and the cache, aliased.
    """
    names = ["layer", "kv_lens", "q_lens", "table", "places"]
    names += ["q_scale"] if call.shape.split else []
    names += ["seen"] if call.shape.max_queries > 1 else []
    names += ["q", "new_kv"]
    names += ["sinks"] if call.sinks else []
    names += ["token_scales"] if call.token_scales else []
    names += ["cache_in", "output", "cache", *call.scratch(1)]
    named = dict(zip(names, refs, strict=True))
    if not call.shape.by_hand:
        _run_passes(
            call,
            named,
            table_width,
            lambda shape: CompilerMatmul(shape, named["products"], shape.widens or call.emulate),
        )
        return
    columns = named["columns"]
    columns[...] = jnp.zeros(columns.shape, columns.dtype)

    def run(units: Any) -> None:
        _run_passes(call, named, table_width, lambda shape: HandMatmul(shape, columns, units))

    with_units(call.shape, call.emulate, run)


def _run_passes(
    call: DecodeCall,
    refs: dict[str, Ref],
    table_width: int,
    matmul: Callable[[DecodeShape], CompilerMatmul | HandMatmul],
) -> None:
    """All passes over the rows, the later ones only where rows are left."""
    first, *later = call.shape.passes
    done = _Kernel.of(call, first, refs, table_width).run(matmul(first), 1)
    for shape in later:

        def run(_: Any, done: jax.Array, shape: DecodeShape = shape) -> jax.Array:
            return done + _Kernel.of(call, shape, refs, table_width).run(matmul(shape), 0)

        left = done < refs["q_lens"].shape[0]
        done = lax.fori_loop(0, left.astype(jnp.int32), run, done)


@dataclass(frozen=True)
class _Kernel:
    """One pass, on references by name."""

    call: DecodeCall
    refs: dict[str, Ref]
    items: Items
    copies: Copies

    @classmethod
    def of(cls, call: DecodeCall, shape: DecodeShape, refs: dict[str, Ref], table_width: int) -> "_Kernel":
        """The pass of `shape`, in its part of memory that is as large as the longest blocks want it."""
        block = pl.ds(0, shape.block)
        refs = {**refs, **{name: refs[name].at[:, :, :, block] for name in ("scores", "weights")}}
        items = Items(shape, call.window, *(refs[name] for name in ("kv_lens", "q_lens", "places", "rows", "ring")))
        own = {field.name: refs[field.name] for field in fields(Copies) if field.name in refs}
        copies = Copies(shape, items, call.emulate, table_width, **own)
        return cls(replace(call, shape=shape), refs, items, copies)

    def run(self, matmul: CompilerMatmul | HandMatmul, begin: int) -> jax.Array:
        """Returns how many rows it took.

        Args:
            begin: the first turn: 1 asks for the first item's pages in code of its own, 0 takes a turn for that.
        """
        shape, items, copies = self.call.shape, self.items, self.copies
        num_rows, num_items = items.start()
        self.refs["sums"][...] = jnp.zeros(self.refs["sums"].shape, jnp.float32)
        copies.fetch_queries(num_rows > 0, 0)
        item, place = items.plan(0, num_items, num_rows, (jnp.int32(0), jnp.int32(0)))
        if begin:
            copies.fetch_all_pages(item)
            copies.fetch_scales(item)
            copies.fetch_new(item)
            copies.fetch_queries((item.last > 0) & (num_rows > 1), 1)
            if shape.by_hand:
                copies.await_queries(item)
                matmul.prepare(self.refs["raw"].at[0], 0)
            _, place = items.plan(1, num_items, num_rows, place)

        def turn(t: jax.Array, place: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            scored, added, asked = items.get(t - 1), items.get(t - 4), items.get(t)
            copies.await_sent(added)
            copies.fetch_scales(asked)
            if shape.copies_at_once:
                copies.fetch_all_pages(asked)
            copies.await_pages(scored)
            copies.await_queries(asked if shape.by_hand else scored)
            copies.await_new(scored)
            copies.await_output(added)
            self._merge_new(scored)

            weighed, valued = items.get(t - 2), items.get(t - 3)
            pause = _nothing if shape.copies_at_once else copies.fetch_pages(asked, matmul.pauses)
            raw, scores, weights = (self.refs[name] for name in ("raw", "scores", "weights"))
            now, other = t & 1, (t - 1) & 1
            products, scores_of = matmul.collect(apart(scores.at[now], self.call.emulate))
            self._add_products(added, products)
            matmul.prepare(raw.at[slot_of(asked.ordinal)], now)
            matmul.step(
                raw.at[slot_of(scored.ordinal)],
                other,
                self._loader(scored, 0),
                apart(weights.at[other], self.call.emulate),
                self._loader(valued, 1),
                scores.at[other],
                pause,
            )
            copies.await_scales(weighed)
            # Its stores come late, so that copies need not wait for them.
            self._softmax(weighed, scores_of, weights.at[now])

            _, place = items.plan(t + 1, num_items, num_rows, place)
            copies.fetch_new(asked)
            following = asked.ordinal + 1
            copies.fetch_queries((asked.last > 0) & (following < num_rows), following)
            copies.send_output(added)
            copies.send_new(scored)
            return place

        # All that a last turn would do is to add the last item's products.
        lax.fori_loop(begin, jnp.where(num_items > 0, num_items + 3, begin), turn, place)
        last = items.get(num_items - 1)
        copies.await_sent(last)
        copies.await_output(last)
        scores = self.refs["scores"].at[(num_items + 3) & 1]
        self._add_products(last, matmul.collect(apart(scores, self.call.emulate))[0])
        copies.send_output(last)
        copies.await_last_outputs(num_rows)
        return num_rows

    # New keys and values.

    def _packing(self) -> tuple[int, int]:
        """Numbers in a 32-bit word of the cache, and bits of one."""
        pack = tile_rows(self.call.shape.kv_dtype) // 8
        return pack, 32 // pack

    def _merge_new(self, item: Item) -> None:
        """Puts new keys and values into an item's block, and clears the values of positions that were never written:
        zero times NaN is NaN."""
        shape, slot = self.call.shape, slot_of(item.ring)
        for query in range(shape.max_queries):
            position = item.new + query - item.start
            here = (query < item.queries) & (position >= 0) & (position < shape.block)
            merge = partial(self._merge_one, slot, query, position, here)
            if shape.max_queries == 1:
                merge()
            else:
                pl.when(here)(merge)
        written = item.length - item.start
        pl.when((item.last > 0) & (written < shape.block))(lambda: self._clear(slot, written))

    def _merge_one(self, slot: jax.Array, query: int, position: jax.Array, here: jax.Array) -> None:
        """Writes a new key and value to a position of a block; nothing unless it is `here`."""
        shape, words, (pack, bits) = self.call.shape, self.refs["kv"].bitcast(jnp.uint32), self._packing()
        position = jnp.where(here, position, 0)
        lines = lax.broadcasted_iota(jnp.int32, (8, 1), 0)
        ones = jnp.int32(-1 if bits == 32 else (1 << bits) - 1)
        for half in (0, 1):
            line = half * shape.page + remainder(position, shape.page)
            tile = pl.ds(pl.multiple_of(quotient(line, pack) & -8, 8), 8)
            own = jnp.where(here, ones << bits * remainder(line, pack), 0)
            own = jnp.where(lines == remainder(quotient(line, pack), 8), own, 0).astype(jnp.uint32)
            block = words.at[slot, quotient(position, shape.page), tile]
            block[...] = (block[...] & ~own) | (self.refs["new"][slot, query, half : half + 1] & own)

    def _clear(self, slot: jax.Array, written: jax.Array) -> None:
        """Zeroes the values of a block from position `written` on."""
        shape = self.call.shape
        first = quotient(written, shape.page)
        lax.fori_loop(first, shape.block_pages, lambda page, _: self._clear_page(slot, page, written), None)

    def _clear_page(self, slot: jax.Array, page: jax.Array, written: jax.Array) -> None:
        shape, words, (pack, bits) = self.call.shape, self.refs["kv"].bitcast(jnp.uint32), self._packing()
        lines = shape.page // pack
        kept = written - page * shape.page - lax.broadcasted_iota(jnp.int32, (lines, 1), 0) * pack
        kept = jnp.clip(kept, 0, pack)
        mask = jnp.where(kept == pack, -1, jnp.left_shift(1, jnp.minimum(kept, pack - 1) * bits) - 1)
        block = words.at[slot, page, lines:]
        block[...] = block[...] & mask.astype(jnp.uint32)

    # Arithmetic.

    def _loader(self, item: Item, half: int) -> Callable[[int, int, int], jax.Array]:
        """Reads keys (half 0) or values (1) of an item's block."""
        shape, block = self.call.shape, apart(self.refs["kv"].at[slot_of(item.ring)], self.call.emulate)

        def load(first: int, count: int, chunk: int) -> jax.Array:
            lane, width = shape.chunk_span(chunk)
            pages, lanes = pl.ds(first // shape.page, count // shape.page), pl.ds(lane, width)
            if tile_rows(shape.kv_dtype) <= shape.page:
                rows = pl.ds(half * shape.page, shape.page)
                return block[pages, rows, lanes].reshape(count, width)
            # A tile holds 16 keys and 16 values: join the same half of two tiles.
            both = block.bitcast(jnp.uint32)[pages, :, lanes].reshape(-1, 2, 8, width)
            even, odd = both[:, 0], both[:, 1]
            upper = lax.broadcasted_iota(jnp.int32, even.shape, 1) < 4
            if half == 0:
                joined = jnp.where(upper, even, pltpu.roll(odd, 4, 1))
            else:
                joined = jnp.where(upper, pltpu.roll(even, 4, 1), odd)
            return pltpu.bitcast(joined.reshape(-1, width), jnp.dtype(shape.kv_dtype))

        return load

    def _softmax(self, item: Item, scores_of: Callable[[int], jax.Array], weights_ref: Ref) -> None:
        """Turns an item's scores into weights, relative to the largest score so far."""
        shape, refs = self.call.shape, self.refs
        first, shift = item.first > 0, math.log2(shape.full_scale)
        before = (item.ring - 1) & (RING - 1)
        masks = self._visible(item)
        of_keys, of_values = self._token_scales(item) if self.call.token_scales else (None, None)
        shares, powers = (None, None) if of_values is None else (1 / of_values, jnp.log2(of_values))
        for chunk in range(shape.num_chunks):
            scores = scores_of(chunk)
            if shape.split:
                scores = scores * self._factors(item)
            if of_keys is not None:
                scores = scores * of_keys
            if self.call.soft_cap is not None:
                scores = jnp.tanh(scores) * (self.call.soft_cap / _LN_2)
            if powers is not None:
                scores = scores + powers
            scores = jnp.where(masks, scores, -jnp.inf)
            initial = refs["sinks"][chunk] if self.call.sinks else _LOWEST
            top_before = jnp.where(first, initial, refs["tops"][before, chunk])
            total = jnp.where(first, 2.0**shift if self.call.sinks else 0.0, refs["totals"][before, chunk])
            top = jnp.maximum(top_before, jnp.max(scores, axis=1, keepdims=True))
            decay = jnp.exp2(top_before - top)
            weights = jnp.exp2(scores - (top - shift))
            refs["tops"][item.ring, chunk] = top
            refs["decays"][item.ring, chunk] = decay
            own = weights if shares is None else jnp.where(masks, weights * shares, 0)
            refs["totals"][item.ring, chunk] = total * decay + jnp.sum(own, axis=1, keepdims=True)
            weights_ref[chunk] = self._packed(weights)

    def _token_scales(self, item: Item) -> tuple[jax.Array, jax.Array]:
        """Of an item's keys and of its values, [1, block].

        Values' scales go into the exponents: weights then are those of the numbers in the cache, and none exceeds 1.
        """
        slot, scales = slot_of(item.ring), self.refs["scales"]
        rows = [[scales[slot, page, half : half + 1] for page in range(self.call.shape.block_pages)] for half in (0, 1)]
        return jnp.concatenate(rows[0], axis=1), jnp.concatenate(rows[1], axis=1)

    def _factors(self, item: Item) -> jax.Array:
        """What the scores of split queries are to be multiplied by, one per row or one for all."""
        shape = self.call.shape
        first = item.place * shape.max_queries
        factors = [self.refs["q_scale"][first + query] for query in range(shape.max_queries)]
        if shape.max_queries == 1:
            return factors[0]
        return jnp.concatenate([jnp.full((shape.token_rows, 1), factor, jnp.float32) for factor in factors], axis=0)

    def _visible(self, item: Item) -> jax.Array:
        """Which positions each row of a chunk's scores sees."""
        shape = self.call.shape
        position = item.start + lax.broadcasted_iota(jnp.int32, (shape.token_rows, shape.block), 1)
        masks = []
        for query in range(shape.max_queries):
            if shape.max_queries == 1:
                visible = position < item.length
            else:
                new = position - item.new
                seen = self.refs["seen"][item.row * shape.max_queries + query]
                seen = jnp.right_shift(seen, jnp.clip(new, 0, 31)) & 1
                visible = (new < 0) | ((new < item.queries) & (seen > 0))
            if self.call.window is not None:
                visible &= position > item.new + query - self.call.window
            masks.append(visible)
        return jnp.concatenate(masks, axis=0) if len(masks) > 1 else masks[0]

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

    def _add_products(self, item: Item, products: list[jax.Array]) -> None:
        """Adds an item's products to its row's sums, and leaves the row's output so far where it is sent from."""
        shape, refs, slot = self.call.shape, self.refs, item.ordinal & 1
        first, shift = item.first > 0, math.log2(shape.full_scale)
        for chunk, product in enumerate(products):
            sums = jnp.where(first, 0.0, refs["sums"][chunk] * refs["decays"][item.ring, chunk]) + product
            refs["sums"][chunk] = sums
            total = refs["totals"][item.ring, chunk]
            refs["out"][slot, chunk, :, : shape.chunk_lanes] = sums * (1 / jnp.maximum(total, 1e-30))
            if self.call.lse:
                lse = (refs["tops"][item.ring, chunk] + jnp.log2(total) - shift) * _LN_2
                refs["out"][slot, chunk, :, shape.chunk_lanes :] = jnp.broadcast_to(lse, (shape.rows, 128))


def _nothing() -> None:
    """Does not pause."""
