"""The kernel of prefill attention: a block of queries of one row against the row's pages, then its own new keys.

A program serves one KV head; its tile holds as many queries as fit, times the G heads that share it. Cached keys lie
before every new query, so they need no causal mask; new keys and values come straight from the projections, so nothing
that this call writes is read by it. Blocks that every query sees whole run in loops without a mask.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as triton
from jaxtyping import Array, Bool, Int

from ..base import AttentionSpec
from .pages import load_positions, store_positions
from .tile import LOG2_E, Lanes, Ref, State, attend, cdiv, empty_state, finish, load_tile, store_tile


@dataclass(frozen=True)
class PrefillPlan:
    """The static part of one call.

    Rows with more than `min_queries - 1` queries are served, the others left alone. `tile` rows (a power of two) hold
    `queries` queries times the heads of a group; `block` keys are read at once.
    """

    spec: AttentionSpec
    group: int
    min_queries: int
    tile: int
    queries: int
    block: int
    lanes: tuple[Lanes, ...]


@dataclass(frozen=True)
class Part:
    """The queries that one program serves: `count` of a row whose `old` keys are in pages.

    They begin with the row's query number `first`; the row's tokens begin at `start`.
    """

    row: Int[Array, ""]
    start: Int[Array, ""]
    first: Int[Array, ""]
    count: Int[Array, ""]
    old: Int[Array, ""]


def paged_prefill_kernel(
    q: Ref,
    k: Ref,
    v: Ref,
    cache: Ref,
    layer: Ref,
    table: Ref,
    query_starts: Ref,
    kv_lens: Ref,
    sinks: Ref | None,
    _out: Ref,
    _lse: Ref | None,
    written: Ref,
    out: Ref,
    lse: Ref | None,
    *,
    plan: PrefillPlan,
    width: int,
) -> None:
    """One program: (block of queries of some row, KV head). `width` is a power of two that holds the B rows.
    `_out` and `_lse` are `out` and `lse` as they come in."""
    part, head = _find_part(query_starts, kv_lens, plan, width), pl.program_id(1)
    lanes, block, spec = plan.lanes, plan.block, plan.spec
    local, query_head, valid = _rows(part, head, plan)
    queries_at = (part.start + local, query_head)
    q_tile = load_tile(q, queries_at, lanes, valid)
    seen = jnp.int32(0) if spec.window is None else jnp.maximum(part.old + part.first - spec.window + 1, 0)

    def cached(number: Int[Array, ""], state: State, *, masked: bool) -> State:
        position = number * block + jnp.arange(block, dtype=jnp.int32)
        there = (position >= seen) & (position < part.old) if masked else None
        keys, values = load_positions(cache, layer[0], table, part.row, head, position, lanes, there)
        if there is None:
            return attend(state, q_tile, keys, values, spec, None)
        visible = jnp.broadcast_to(there[None, :], (plan.tile, block))
        if spec.window is not None:
            visible &= position[None, :] > (part.old + local)[:, None] - spec.window
        return attend(state, q_tile, keys, values, spec, visible)

    state = _start(sinks, query_head, valid, plan)
    low, whole, end = (
        jax.lax.div(seen, jnp.int32(block)),
        jax.lax.div(part.old, jnp.int32(block)),
        cdiv(part.old, block),
    )
    if spec.window is None:
        state = jax.lax.fori_loop(low, whole, lambda i, state: cached(i, state, masked=False), state)
        low = whole
    state = jax.lax.fori_loop(low, end, lambda i, state: cached(i, state, masked=True), state)
    state = _attend_new(state, q_tile, k, v, part, head, local, plan)

    result, sum_log = finish(state)
    store_tile(out, queries_at, lanes, valid, result)
    if lse is not None:
        triton.store(lse.at[queries_at], sum_log / LOG2_E, mask=valid)

    number = jnp.arange(pl.next_power_of_2(plan.queries), dtype=jnp.int32)
    mine = number < part.count
    token = part.start + part.first + number
    keys, values = (load_tile(array, (token, head), lanes, mine) for array in (k, v))
    store_positions(written, layer[0], table, part.row, head, part.old + part.first + number, lanes, mine, keys, values)


def dense_prefill_kernel(
    q: Ref,
    k: Ref,
    v: Ref,
    lengths: Ref,
    sinks: Ref | None,
    out: Ref,
    lse: Ref | None,
    *,
    plan: PrefillPlan,
    row_tokens: int,
) -> None:
    """One program: (block of queries of some row, KV head). Row b has lengths[b] of the tokens from b * row_tokens on;
    the rest of its output is zero."""
    blocks = pl.cdiv(row_tokens, plan.queries)
    number, head = pl.num_programs(0) - 1 - pl.program_id(0), pl.program_id(1)
    row, first = jax.lax.div(number, jnp.int32(blocks)), jax.lax.rem(number, jnp.int32(blocks)) * plan.queries
    count = jnp.clip(lengths[row] - first, 0, plan.queries)
    part = Part(row, row * row_tokens, first, count, jnp.int32(0))
    local, query_head, valid = _rows(part, head, plan)
    queries_at = (part.start + local, query_head)
    q_tile = load_tile(q, queries_at, plan.lanes, valid)
    state = _attend_new(_start(sinks, query_head, valid, plan), q_tile, k, v, part, head, local, plan)
    result, sum_log = finish(state)
    inside = (local < first + plan.queries) & (local < row_tokens)
    store_tile(out, queries_at, plan.lanes, inside, tuple(jnp.where(valid[:, None], tile, 0.0) for tile in result))
    if lse is not None:
        triton.store(lse.at[queries_at], jnp.where(valid, sum_log / LOG2_E, -jnp.inf), mask=inside)


def _find_part(query_starts: Ref, kv_lens: Ref, plan: PrefillPlan, width: int) -> Part:
    """The queries of this program.

    Row b's blocks begin at number starts[b] // queries + b, which leaves room for all of them; numbers between two rows
    have nothing to do. The last ones, which see most keys, are begun first.
    """
    number = pl.num_programs(0) - 1 - pl.program_id(0)
    rows = jnp.arange(width, dtype=jnp.int32)
    inside = rows < kv_lens.shape[0]
    starts = triton.load(query_starts.at[rows], mask=inside, other=0)
    begun = inside & (jax.lax.div(starts, jnp.int32(plan.queries)) + rows <= number)
    row = jnp.sum(begun.astype(jnp.int32)) - 1
    start = query_starts[row]
    queries = query_starts[row + 1] - start
    old = kv_lens[row] - queries
    first = (number - jax.lax.div(start, jnp.int32(plan.queries)) - row) * plan.queries
    count = jnp.clip(queries - first, 0, plan.queries)
    served = (queries >= plan.min_queries) & (count > 0)
    return Part(row, start, first, jnp.where(served, count, 0), jnp.where(served, old, 0))


def _rows(
    part: Part, head: Int[Array, ""], plan: PrefillPlan
) -> tuple[Int[Array, "M"], Int[Array, "M"], Bool[Array, "M"]]:
    """Of each row of the tile: the query's number in its row of the batch, its head, and whether there is one."""
    tile_row = jnp.arange(plan.tile, dtype=jnp.int32)
    offset = jax.lax.div(tile_row, jnp.int32(plan.group))
    query_head = head * plan.group + jax.lax.rem(tile_row, jnp.int32(plan.group))
    return part.first + offset, query_head, offset < part.count


def _start(sinks: Ref | None, query_head: Int[Array, "M"], valid: Bool[Array, "M"], plan: PrefillPlan) -> State:
    if sinks is None:
        return empty_state(plan.tile, plan.lanes)
    logits = triton.load(sinks.at[query_head], mask=valid, other=-jnp.inf)
    return empty_state(plan.tile, plan.lanes, logits)


def _attend_new(
    state: State,
    q_tile: tuple[Array, ...],
    k: Ref,
    v: Ref,
    part: Part,
    head: Int[Array, ""],
    local: Int[Array, "M"],
    plan: PrefillPlan,
) -> State:
    """The state after the row's new keys, up to each query's own."""
    spec, lanes, block = plan.spec, plan.lanes, plan.block
    end = part.first + part.count
    seen = jnp.int32(0) if spec.window is None else jnp.maximum(part.first - spec.window + 1, 0)

    def new(number: Int[Array, ""], state: State, *, masked: bool) -> State:
        key = number * block + jnp.arange(block, dtype=jnp.int32)
        there = (key >= seen) & (key < end) if masked else None
        keys, values = (load_tile(array, (part.start + key, head), lanes, there) for array in (k, v))
        if there is None:
            return attend(state, q_tile, keys, values, spec, None)
        visible = there[None, :] & (key[None, :] <= local[:, None])
        if spec.window is not None:
            visible &= key[None, :] > local[:, None] - spec.window
        return attend(state, q_tile, keys, values, spec, visible)

    low = jax.lax.div(seen, jnp.int32(block))
    if spec.window is None:
        # Blocks of keys that the first query, and so every one, sees whole.
        whole = jnp.where(part.count > 0, jax.lax.div(part.first + 1, jnp.int32(block)), 0)
        state = jax.lax.fori_loop(low, whole, lambda i, state: new(i, state, masked=False), state)
        low = whole
    high = jnp.where(part.count > 0, cdiv(end, block), 0)
    return jax.lax.fori_loop(low, high, lambda i, state: new(i, state, masked=True), state)
