"""The walk of an attention kernel over rows, tiles of queries and chunks of keys, the same for paged and dense memory.

One piece of work is a chunk of keys with a tile of queries of one group of heads. The walk takes the pieces of all
rows in order, as one sequence, so that prefill_step's two stages overlap everywhere: even the first scores of a tile
are computed while the last ones of the tile before are weighed.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .prefill_plan import MASKED, TILE_ALIGNMENT, PrefillPlan
from .prefill_step import finish, reset, start, step


@runtime_checkable
class Source(Protocol):
    """Rows of a batch, and where their keys and values come from."""

    @property
    def num_rows(self) -> int: ...

    def ours(self, row: Any) -> Any:
        """Whether this kernel computes the row."""
        ...

    def queries(self, row: Any) -> tuple[Any, Any]:
        """First token of the row, and the one after its last."""
        ...

    def kv_len(self, row: Any) -> Any: ...

    def begin(self, row: Any) -> None:
        """Runs before anything of the row is fetched."""
        ...

    def fetch(self, row: Any, chunk: Any, first: Any, slot: Any) -> None:
        """Starts to bring a chunk; positions before `first` are not needed."""
        ...

    def arrive(self, row: Any, chunk: Any, first: Any, slot: Any) -> None:
        """Waits for a chunk, and leaves zeros where nothing was written."""
        ...

    def visible(self, row: Any, tile_start: Any, key: Any, query: Any) -> Any | None:
        """A mask [keys, queries] of its own, given positions; None where there is none."""
        ...


@dataclass(frozen=True)
class Tile:
    """Queries of one row that are computed together; `position` is that of its first lane, maybe before the row's."""

    row: Any
    token: Any
    position: Any
    first: Any
    low: Any
    high: Any


@dataclass(frozen=True)
class Walk:
    """One kernel's run over everything.

    Args:
        ref: the plan's scratch, by name.
        q: queries [N, tokens, window] in HBM.
        out: output [N, tokens, out_width] in HBM.
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
        self._for_heads(self._reset)
        for i, begin in enumerate((-1, 0, 0, 0, 0, 1)):
            ref["cursor"][i] = jnp.int32(begin)

        def of_tile(state: tuple[Any, ...]) -> tuple[Any, ...]:
            row, number, tiles, slot, before_row, before_number, _ = state
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

            def of_chunk(at: Any, slot: Any) -> Any:
                chunk, begins = tile.low + at, at == 0
                masked = self._masked(tile, chunk)

                @pl.when(live)
                def _() -> None:
                    ahead = jnp.where((tiles == 0) & begins, plan.blocks.buffers, 1)
                    jax.lax.fori_loop(0, ahead, lambda _, carry: self._fetch_next() or carry, 0)
                    source.arrive(tile.row, chunk, tile.first, slot)
                    self._prepare_bias(tile, chunk, masked)

                def piece(group: Any, current: Any) -> Any:
                    indices = {"current": current, "upcoming": group, "q_slot": q_slot, "kv_slot": slot}
                    if plan.blocks.split:
                        pl.when(masked)(lambda: step(plan, ref, **indices, masked=True))
                        pl.when(jnp.logical_not(masked))(lambda: step(plan, ref, **indices, masked=False))
                    else:
                        step(plan, ref, **indices, masked=True)
                    ends_before = begins & (group == 0) & (tiles > 0)
                    pl.when(ends_before)(lambda: self._finish(before_row, before_number, tiles - 1))
                    return group

                # The piece before this tile's first is the last one of the tile before; at the very beginning there is
                # none, and the scratch's random contents go to spare accumulators.
                current = plan.bodies - 1 + jnp.where((tiles == 0) & begins, 1, 0)
                jax.lax.fori_loop(0, jnp.where(live, plan.bodies, 1), piece, current)
                return jnp.where(slot == plan.blocks.buffers - 1, 0, slot + 1)

            slot = jax.lax.fori_loop(0, jnp.where(live, tile.high - tile.low, 1), of_chunk, slot)
            return next_row, next_number, tiles + 1, slot, row, number, live

        first_row, first_number = self._after(jnp.int32(-1), jnp.int32(0))
        zero = jnp.int32(0)
        begun = (first_row, first_number, zero, zero, zero, zero, first_row < source.num_rows)
        tiles = jax.lax.while_loop(lambda state: state[-1], of_tile, begun)[2]
        pl.when(tiles > 0)(self._last_left)

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
        keys, queries, window = self.plan.blocks.keys, self.plan.blocks.queries, self.plan.spec.window
        begin = chunk * keys
        end = begin + keys - 1
        masked = end > tile.position if self.plan.causal else end >= self.source.kv_len(tile.row)
        return masked if window is None else masked | (begin <= tile.position + queries - 1 - window)

    def _prepare_bias(self, tile: Tile, chunk: Any, masked: Any) -> None:
        pl.when(masked)(lambda: self._set_bias(tile, chunk))
        if self.plan.blocks.split:
            return
        stale = self.ref["cursor"]  # [5]: whether the bias masks something

        @pl.when(jnp.logical_not(masked) & (stale[5] > 0))
        def _() -> None:
            self.ref["bias"][...] = jnp.full_like(self.ref["bias"], jnp.inf)

        stale[5] = masked.astype(jnp.int32)

    def _set_bias(self, tile: Tile, chunk: Any) -> None:
        keys, queries, window = self.plan.blocks.keys, self.plan.blocks.queries, self.plan.spec.window
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
        rows, here, arrived = pl.ds(token, self.plan.blocks.queries), self.ref["q"], self.ref["q_arrived"].at[slot]

        def of_head(head: Any) -> None:
            pltpu.make_async_copy(self.q.at[head, rows], here.at[slot, head], arrived).start()

        self._for_heads(of_head)

    def _await_q(self, slot: Any) -> None:
        here = self.ref["q"].at[slot]
        pltpu.make_async_copy(here, here, self.ref["q_arrived"].at[slot]).wait()

    def _fetch_next(self) -> None:
        """Starts to bring the chunk that follows the last one asked for, in whatever tile and row it is."""
        cursor, source = self.ref["cursor"], self.source

        @pl.when(cursor[2] >= cursor[3])
        def _() -> None:
            row = cursor[0]
            next_row, next_number = self._after(row, cursor[1])
            pl.when((next_row < source.num_rows) & (next_row != row))(lambda: source.begin(next_row))
            tile = self._tile(next_row, next_number)
            cursor[0], cursor[1], cursor[2], cursor[3] = next_row, next_number, tile.low, tile.high

        @pl.when(cursor[0] < source.num_rows)
        def _() -> None:
            tile = self._tile(cursor[0], cursor[1])
            source.fetch(cursor[0], cursor[2], tile.first, cursor[4] % self.plan.blocks.buffers)
            cursor[2] += 1
            cursor[4] += 1

    # Results

    def _for_heads(self, body: Any, *, at_once: int = 1) -> None:
        def some(at: Any, carry: Any) -> Any:
            for i in range(at_once):
                body(at * at_once + i)
            return carry

        jax.lax.fori_loop(0, self.plan.num_heads // at_once, some, 0)

    def _reset(self, head: Any) -> None:
        reset(self.plan, self.ref, head, None if self.sinks is None else self.sinks[head])

    def _finish(self, row: Any, number: Any, tiles: Any) -> None:
        """Sends a tile's output away, and empties the accumulators for the next."""
        plan, ref = self.plan, self.ref
        tile = self._tile(row, number)
        pl.when(tiles > 0)(self._last_left)

        def of_head(head: Any) -> None:
            finish(plan, ref, head)
            self._reset(head)

        self._for_heads(of_head, at_once=math.gcd(plan.num_heads, 4))
        begin, _ = self.source.queries(tile.row)
        shared = begin - tile.token
        pl.when(shared > 0)(lambda: self._keep_neighbours(tile, shared))
        rows = pl.ds(pl.multiple_of(tile.token, TILE_ALIGNMENT), plan.blocks.queries)

        def leave(head: Any) -> None:
            pltpu.make_async_copy(ref["out"].at[head], self.out.at[head, rows], ref["out_left"]).start()

        self._for_heads(leave)
        if plan.return_lse:
            pltpu.make_async_copy(ref["lse"], self.lse.at[tiles], ref["lse_left"]).start()

    def _keep_neighbours(self, tile: Tile, shared: Any) -> None:
        """The rows of a tile that belong to the row of the batch before stay as they are."""
        ref = self.ref
        token = pl.multiple_of(tile.token, TILE_ALIGNMENT)
        there, here = self.out.at[:, pl.ds(token, TILE_ALIGNMENT)], ref["neighbours"]
        pltpu.sync_copy(there, here)
        ours = jax.lax.broadcasted_iota(jnp.int32, here.shape, 1) >= shared
        ref["out"][:, :TILE_ALIGNMENT] = jnp.where(ours, ref["out"][:, :TILE_ALIGNMENT], here[...])

    def _last_left(self) -> None:
        """Waits until the last output has left; where it went does not matter to a wait."""
        pltpu.make_async_copy(self.ref["out"], self.ref["out"], self.ref["out_left"]).wait()
        if self.plan.return_lse:
            pltpu.make_async_copy(self.ref["lse"], self.lse.at[0], self.ref["lse_left"]).wait()
