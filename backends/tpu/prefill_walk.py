"""The walk of an attention kernel over rows, tiles of queries and chunks of keys, the same for paged and dense memory.

One piece of work is a chunk of keys with a tile of queries of one group of heads. The walk takes the pieces of all
rows in order, as one sequence, so that prefill_step's three stages overlap everywhere: even the first scores of a tile
are computed while the last ones of the tile before are weighed. A tile's sums are complete two pieces after its last.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .cache import LANES
from .prefill_pieces import Piece, Source, Tile
from .prefill_plan import MASKED, TILE_ALIGNMENT, Cursor, PrefillPlan
from .prefill_step import Step, finish, lay, start


@dataclass(frozen=True)
class Walk:
    """One kernel's run over everything.

    Args:
        ref: the plan's scratch, by name.
        q: queries [tokens, N * window] in HBM.
        out: output [tokens, N * out_width] in HBM.
        lse: log-sum-exp [tiles, N, queries] in HBM.
        sinks: [N] in SMEM.
    """

    plan: PrefillPlan
    ref: dict[str, Any]
    source: Source
    q: Any
    out: Any
    lse: Any = None
    sinks: Any | None = None

    def run(self) -> None:
        plan, ref, source = self.plan, self.ref, self.source
        start(plan, ref)
        first_row, first_number = self._after(jnp.int32(-1), jnp.int32(0))
        begun = {Cursor.FETCH_ROW: -1, Cursor.DONE_ROW: first_row, Cursor.DONE_TILE: first_number, Cursor.BIASED: 1}
        for name in Cursor:
            ref["cursor"][name] = jnp.int32(begun.get(name, 0))

        def of_tile(state: tuple[Any, ...]) -> tuple[Any, ...]:
            row, number, tiles, slot, weighed, added, _ = state
            live = row < source.num_rows
            tile = self._tile(row, number)
            next_row, next_number = self._after(row, number)
            q_slot = tiles % 2

            @pl.when(live)
            def _() -> None:
                pl.when(tiles == 0)(lambda: self._fetch_q(tile, q_slot))
                upcoming = self._tile(next_row, next_number)
                pl.when(next_row < source.num_rows)(lambda: self._fetch_q(upcoming, 1 - q_slot))
                self._await_q(q_slot)

            def of_chunk(at: Any, carry: Any) -> Any:
                slot, weighed, added = carry

                @pl.when(live)
                def _() -> None:
                    ahead = jnp.where((tiles == 0) & (at == 0), plan.blocks.buffers, 1)
                    jax.lax.fori_loop(0, ahead, lambda _, carry: self._fetch_next() or carry, 0)
                    source.arrive(tile.row, tile.low + at, tile.first, slot)
                    self._prepare_bias(tile, tile.low + at)
                    if plan.whole:
                        lay(plan, ref, slot)

                def of_piece(number: Any, carry: Any) -> Any:
                    weighed, added = map(Piece, carry)
                    # Past the last tile, pieces that are none let the stages of the last ones run.
                    group = jnp.where(live, number, plan.bodies)
                    last = live & (at == tile.high - tile.low - 1)
                    piece = Piece.of(group, first=at == 0, last=last, odd=tiles % 2)
                    Step(
                        plan,
                        ref,
                        group=jnp.where(live, number, 0),
                        q_slot=q_slot,
                        kv_slot=slot,
                        weighed=self._statistics(weighed),
                        weighed_first=weighed.first,
                        added=added.group * plan.heads,
                        added_first=added.first,
                    ).run()
                    pl.when(added.last)(lambda: self._finish(added))
                    return piece.code, weighed.code

                pieces = jnp.where(live, plan.bodies, 2)
                weighed, added = jax.lax.fori_loop(0, pieces, of_piece, (weighed, added))
                return (jnp.where(slot == plan.blocks.buffers - 1, 0, slot + 1), weighed, added)

            chunks = jnp.where(live, tile.high - tile.low, 1)
            carry = jax.lax.fori_loop(0, chunks, of_chunk, (slot, weighed, added))
            return next_row, next_number, tiles + 1, *carry, live

        zero = jnp.int32(0)
        # Before the first piece, the scratch's random contents go to spare accumulators.
        none = Piece.of(jnp.int32(plan.bodies), first=1, last=0, odd=0).code
        state = (first_row, first_number, zero, zero, none, none, first_row < source.num_rows)
        tiles = jax.lax.while_loop(lambda state: state[-1], of_tile, state)[2]

        @pl.when(tiles > 0)
        def _() -> None:
            for group in range(plan.bodies):
                self._left(group)
            if plan.return_lse:
                self._lse_left()

    def _statistics(self, piece: Piece) -> Any:
        return piece.odd * self.plan.accumulators + piece.group * self.plan.heads

    # Rows and tiles

    def _count(self, row: Any) -> Any:
        """Tiles of a row."""
        begin, end = self.source.queries(row)
        return pl.cdiv(end - begin // TILE_ALIGNMENT * TILE_ALIGNMENT, self.plan.blocks.queries)

    def _after(self, row: Any, number: Any) -> tuple[Any, Any]:
        """The tile that comes after another; row -1 is before all, row num_rows behind all."""
        num_rows = self.source.num_rows
        here = jnp.clip(row, 0, num_rows - 1)
        more = (row >= 0) & (row < num_rows) & (number + 1 < self._count(here))

        def others(row: Any) -> Any:
            return (row < num_rows) & jnp.logical_not(self.source.ours(jnp.minimum(row, num_rows - 1)))

        following = jax.lax.while_loop(others, lambda row: row + 1, jnp.where(more, num_rows, row + 1))
        return jnp.where(more, row, jnp.minimum(following, num_rows)), jnp.where(more, number + 1, 0)

    def _tile(self, row: Any, number: Any) -> Tile:
        plan = self.plan
        row = jnp.clip(row, 0, self.source.num_rows - 1)
        (begin, end), kv_len = self.source.queries(row), self.source.kv_len(row)
        token = begin // TILE_ALIGNMENT * TILE_ALIGNMENT + number * plan.blocks.queries
        own = kv_len - (end - begin)
        position = own + token - begin
        first = jnp.int32(0)
        if plan.spec.window is not None:
            first = jnp.maximum(jnp.maximum(position, own) - plan.spec.window + 1, 0)
        last = jnp.minimum(position + plan.blocks.queries, kv_len) if plan.causal else kv_len
        return Tile(row, token, position, first, first // plan.blocks.keys, pl.cdiv(last, plan.blocks.keys))

    def _masked(self, tile: Tile, chunk: Any) -> Any:
        """Whether some query of the tile does not see some key of the chunk."""
        if self.plan.extra_mask:
            return jnp.bool_(True)
        keys, queries, window = (self.plan.blocks.keys, self.plan.blocks.queries, self.plan.spec.window)
        begin = chunk * keys
        end = begin + keys - 1
        masked = end > tile.position if self.plan.causal else end >= self.source.kv_len(tile.row)
        return masked if window is None else masked | (begin <= tile.position + queries - 1 - window)

    def _prepare_bias(self, tile: Tile, chunk: Any) -> None:
        masked, biased = self._masked(tile, chunk), self.ref["cursor"][Cursor.BIASED] > 0
        pl.when(masked)(lambda: self._set_bias(tile, chunk))
        pl.when(jnp.logical_not(masked) & biased)(self._clear_bias)
        self.ref["cursor"][Cursor.BIASED] = masked.astype(jnp.int32)

    def _clear_bias(self) -> None:
        self.ref["bias"][...] = jnp.full_like(self.ref["bias"], jnp.inf)

    def _set_bias(self, tile: Tile, chunk: Any) -> None:
        keys, queries, window = (self.plan.blocks.keys, self.plan.blocks.queries, self.plan.spec.window)
        key = chunk * keys + jax.lax.broadcasted_iota(jnp.int32, (keys, queries), 0)
        query = tile.position + jax.lax.broadcasted_iota(jnp.int32, (keys, queries), 1)
        visible = key <= query if self.plan.causal else key < self.source.kv_len(tile.row)
        if window is not None:
            visible &= key > query - window
        extra = self.source.visible(tile.row, tile.token, key, query)
        if extra is not None:
            visible &= extra
        self.ref["bias"][...] = jnp.where(visible, jnp.inf, MASKED)

    # Fetching

    def _fetch_q(self, tile: Tile, slot: Any) -> None:
        token = pl.multiple_of(tile.token, TILE_ALIGNMENT)
        rows, here, arrived = (pl.ds(token, self.plan.blocks.queries), self.ref["q"], self.ref["q_arrived"].at[slot])

        def of_head(head: Any) -> None:
            lanes = pl.ds(pl.multiple_of(head * self.plan.window, LANES), self.plan.window)
            pltpu.make_async_copy(self.q.at[rows, lanes], here.at[slot, head], arrived).start()

        self._for_heads(of_head, self.plan.num_heads)

    def _await_q(self, slot: Any) -> None:
        here = self.ref["q"].at[slot]
        pltpu.make_async_copy(here, here, self.ref["q_arrived"].at[slot]).wait()

    def _fetch_next(self) -> None:
        """Starts to bring the chunk that follows the last one asked for, in whatever tile and row it is."""
        cursor, source = self.ref["cursor"], self.source

        @pl.when(cursor[Cursor.FETCH_CHUNK] >= cursor[Cursor.FETCH_END])
        def _() -> None:
            row = cursor[Cursor.FETCH_ROW]
            next_row, next_number = self._after(row, cursor[Cursor.FETCH_TILE])
            pl.when((next_row < source.num_rows) & (next_row != row))(lambda: source.begin(next_row))
            tile = self._tile(next_row, next_number)
            cursor[Cursor.FETCH_ROW], cursor[Cursor.FETCH_TILE] = next_row, next_number
            cursor[Cursor.FETCH_CHUNK], cursor[Cursor.FETCH_END] = tile.low, tile.high
            cursor[Cursor.FETCH_FIRST] = tile.first

        @pl.when(cursor[Cursor.FETCH_ROW] < source.num_rows)
        def _() -> None:
            chunk, slot = cursor[Cursor.FETCH_CHUNK], cursor[Cursor.FETCH_SLOT]
            source.fetch(cursor[Cursor.FETCH_ROW], chunk, cursor[Cursor.FETCH_FIRST], slot)
            cursor[Cursor.FETCH_CHUNK] = chunk + 1
            cursor[Cursor.FETCH_SLOT] = jnp.where(slot == self.plan.blocks.buffers - 1, 0, slot + 1)

    # Results

    def _for_heads(self, body: Any, heads: int, *, at_once: int = 1) -> None:
        def some(at: Any, carry: Any) -> Any:
            for i in range(at_once):
                body(at * at_once + i)
            return carry

        jax.lax.fori_loop(0, heads // at_once, some, 0)

    def _finish(self, piece: Piece) -> None:
        """Sends the output of a tile's group of heads away."""
        plan, ref, cursor = self.plan, self.ref, self.ref["cursor"]
        tile, done = (self._tile(cursor[Cursor.DONE_ROW], cursor[Cursor.DONE_TILE]), cursor[Cursor.DONE])
        pl.when(done > 0)(lambda: self._left(piece.group))
        if plan.return_lse:
            pl.when((done > 0) & (piece.group == 0))(self._lse_left)
        begin = piece.group * plan.heads

        def of_head(i: Any) -> None:
            sink = None if self.sinks is None else self.sinks[begin + i]
            finish(plan, ref, begin + i, self._statistics(piece) + i, sink)

        self._for_heads(of_head, plan.heads, at_once=math.gcd(plan.heads, 8))
        shared = self.source.queries(tile.row)[0] - tile.token
        pl.when(shared > 0)(lambda: self._keep_neighbours(tile, begin, shared))

        def leave(i: Any) -> None:
            there, left = self._out_of(tile, begin + i, plan.blocks.queries), ref["out_left"].at[piece.group]
            pltpu.make_async_copy(ref["out"].at[begin + i], there, left).start()

        self._for_heads(leave, plan.heads)

        @pl.when(piece.group == plan.bodies - 1)
        def _() -> None:
            if plan.return_lse:
                pltpu.make_async_copy(ref["lse"], self.lse.at[done], ref["lse_left"]).start()
            next_row, next_number = self._after(cursor[Cursor.DONE_ROW], cursor[Cursor.DONE_TILE])
            cursor[Cursor.DONE_ROW], cursor[Cursor.DONE_TILE], cursor[Cursor.DONE] = (next_row, next_number, done + 1)

    def _out_of(self, tile: Tile, head: Any, count: int) -> Any:
        """The output of the first tokens of a tile."""
        rows = pl.ds(pl.multiple_of(tile.token, TILE_ALIGNMENT), count)
        return self.out.at[rows, pl.ds(pl.multiple_of(head * self.plan.out_width, LANES), self.plan.out_width)]

    def _keep_neighbours(self, tile: Tile, begin: Any, shared: Any) -> None:
        """The rows of a tile that belong to the row of the batch before stay as they are."""
        here, arrived, heads = self.ref["neighbours"], self.ref["neighbours_arrived"], self.plan.heads

        def bring(i: Any) -> None:
            there = self._out_of(tile, begin + i, TILE_ALIGNMENT)
            pltpu.make_async_copy(there, here.at[i], arrived).start()

        self._for_heads(bring, heads)
        pltpu.make_async_copy(here, here, arrived).wait()
        ours = jax.lax.broadcasted_iota(jnp.int32, here.shape, 1) >= shared
        out = self.ref["out"].at[pl.ds(begin, heads), pl.ds(0, TILE_ALIGNMENT)]
        out[...] = jnp.where(ours, out[...], here[...])

    def _left(self, group: Any) -> None:
        """Waits until the last output of a group has left; where it went does not matter to a wait."""
        out = self.ref["out"].at[pl.ds(group * self.plan.heads, self.plan.heads)]
        pltpu.make_async_copy(out, out, self.ref["out_left"].at[group]).wait()

    def _lse_left(self) -> None:
        pltpu.make_async_copy(self.ref["lse"], self.lse.at[0], self.ref["lse_left"]).wait()
