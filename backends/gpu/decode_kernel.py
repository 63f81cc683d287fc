"""The kernels of decode attention: rows with few queries, whose keys are split over programs, and the combination.

A program serves one row, one KV head and one split of the row's cached keys. Its tile holds all queries of the row for
the G heads that share the KV head. The new keys and values come straight from the projections, never from the cache,
so that writing them needs no order between programs: the last split takes them in and writes them.
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
class DecodePlan:
    """The static part of one call.

    `max_queries` of a row are served, rows with more are left alone. `tile` rows (a power of two) hold the queries of
    a row times the heads of a group; `block` keys are read at once; `splits` programs share the keys of a row.
    """

    spec: AttentionSpec
    head_dim: int
    group: int
    max_queries: int
    tile: int
    block: int
    splits: int
    lanes: tuple[Lanes, ...]
    new_keys: int


def decode_kernel(
    q: Ref,
    k: Ref,
    v: Ref,
    cache: Ref,
    layer: Ref,
    table: Ref,
    query_starts: Ref,
    kv_lens: Ref,
    sinks: Ref | None,
    written: Ref,
    out: Ref,
    lse: Ref | None,
    *,
    plan: DecodePlan,
) -> None:
    """One program: (row, KV head, split).

    With one split, `out` is [T, N, H] and `lse` [T, N] or None. With more, `out` is [B, K, splits, R, H] and `lse`
    [B, K, splits, R] for the R = max_queries * G queries of a row: what combine_kernel takes.
    """
    row, head, split = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    spec, lanes, group, block = plan.spec, plan.lanes, plan.group, plan.block
    start = query_starts[row]
    queries = query_starts[row + 1] - start
    old = kv_lens[row] - queries
    served = queries <= plan.max_queries
    queries, old = jnp.where(served, queries, 0), jnp.where(served, old, 0)
    last = split == plan.splits - 1

    tile_row = jnp.arange(plan.tile, dtype=jnp.int32)
    local = jax.lax.div(tile_row, jnp.int32(group))
    query_head = head * group + jax.lax.rem(tile_row, jnp.int32(group))
    valid = local < queries
    queries_at = (start + local, query_head)
    q_tile = load_tile(q, queries_at, lanes, valid)

    # The row's newest keys, each seen by the queries from its own position on.
    newest = jnp.arange(plan.new_keys, dtype=jnp.int32)
    there = (newest < queries) & last
    new_keys = load_tile(k, (start + newest, head), lanes, there)
    new_values = load_tile(v, (start + newest, head), lanes, there)
    visible = there[None, :] & (newest[None, :] <= local[:, None])
    if spec.window is not None:
        visible &= newest[None, :] > local[:, None] - spec.window
    logits = None
    if sinks is not None:
        logits = triton.load(sinks.at[query_head], mask=valid & last, other=-jnp.inf)
    state = attend(empty_state(plan.tile, lanes, logits), q_tile, new_keys, new_values, spec, visible)

    # This split's part of the cached keys that the first query sees, in whole blocks.
    seen = jnp.int32(0) if spec.window is None else jnp.maximum(old - spec.window + 1, 0)
    first, end = jax.lax.div(seen, jnp.int32(block)), cdiv(old, block)
    each = cdiv(jnp.maximum(end - first, 0), plan.splits)
    low = first + split * each

    def one_block(number: Int[Array, ""], state: State) -> State:
        position = number * block + jnp.arange(block, dtype=jnp.int32)
        there = (position >= seen) & (position < old)
        keys, values = load_positions(cache, layer[0], table, row, head, position, lanes, there)
        visible = jnp.broadcast_to(there[None, :], (plan.tile, block))
        if spec.window is not None:
            visible &= position[None, :] > (old + local)[:, None] - spec.window
        return attend(state, q_tile, keys, values, spec, visible)

    state = jax.lax.fori_loop(low, jnp.minimum(low + each, end), one_block, state)
    result, sum_log = finish(state)

    store_positions(
        written, layer[0], table, row, head, old + newest, lanes, (newest < queries) & last, new_keys, new_values
    )
    if plan.splits > 1:
        inside = tile_row < plan.max_queries * group
        # A part without a key is never read.
        store_tile(out, (row, head, split, tile_row), lanes, inside & (sum_log > -jnp.inf), result)
        assert lse is not None
        triton.store(lse.at[row, head, split, tile_row], sum_log, mask=inside)
        return
    store_tile(out, queries_at, lanes, valid, result)
    if lse is not None:
        triton.store(lse.at[queries_at], sum_log / LOG2_E, mask=valid)
    _clear_padding(query_starts, out, lse, row, pl.num_programs(0), head * group + tile_row, tile_row < group, lanes)


def combine_kernel(
    parts: Ref, part_lse: Ref, query_starts: Ref, out: Ref, lse: Ref | None, *, plan: DecodePlan, width: int
) -> None:
    """One program: (row, query of the row, head). Sums the splits, each by its share of the exponentials.

    `width` is a power of two that holds the splits. Takes parts [B, K, splits, R, H] and their lse [B, K, splits, R]
    in base 2; fills out [T, N, H] and lse [T, N] (or None).
    """
    row, local, query_head = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    group, lanes = plan.group, plan.lanes
    start = query_starts[row]
    queries = query_starts[row + 1] - start
    valid = (local < queries) & (queries <= plan.max_queries)

    split = jnp.arange(width, dtype=jnp.int32)
    head = jax.lax.div(query_head, jnp.int32(group))
    tile_row = local * group + jax.lax.rem(query_head, jnp.int32(group))
    logs = triton.load(part_lse.at[row, head, split, tile_row], mask=(split < plan.splits) & valid, other=-jnp.inf)
    top = jnp.max(logs)
    shares = jnp.exp2(logs - jnp.where(top == -jnp.inf, 0.0, top))
    total = jnp.sum(shares)
    shares /= jnp.where(total == 0.0, 1.0, total)
    tiles = load_tile(parts, (row, head, split, tile_row), lanes, logs > -jnp.inf)
    result = tuple(jnp.sum(shares[:, None] * tile, axis=0, keepdims=True) for tile in tiles)

    heads = jnp.full((1,), query_head)
    store_tile(out, (start + local, heads), lanes, jnp.full((1,), valid), result)
    if lse is not None:
        sum_log = jnp.where(total == 0.0, -jnp.inf, top + jnp.log2(jnp.where(total == 0.0, 1.0, total)))
        triton.store(lse.at[start + local, query_head], sum_log / LOG2_E, mask=valid)
    turn, turns = row * plan.max_queries + local, pl.num_programs(0) * plan.max_queries
    _clear_padding(query_starts, out, lse, turn, turns, heads, heads >= 0, lanes)


def _clear_padding(
    query_starts: Ref,
    out: Ref,
    lse: Ref | None,
    turn: Int[Array, ""],
    turns: int | Int[Array, ""],
    heads: Int[Array, "R"],
    mask: Bool[Array, "R"],
    lanes: tuple[Lanes, ...],
) -> None:
    """Writes zeros to these heads of the tokens behind the last row's; `turns` programs share the work."""
    num_tokens = out.shape[0]
    first = query_starts[query_starts.shape[0] - 1] + turn
    zeros = tuple(jnp.zeros((mask.shape[0], part.width), jnp.float32) for part in lanes)

    def clear(number: Int[Array, ""], _: None) -> None:
        token = first + number * turns
        store_tile(out, (token, heads), lanes, mask, zeros)
        if lse is not None:
            triton.store(lse.at[token, heads], jnp.full(mask.shape, -jnp.inf, jnp.float32), mask=mask)

    count = jax.lax.div(jnp.maximum(num_tokens - first, 0) + (turns - 1), jnp.int32(turns))
    jax.lax.fori_loop(0, count, clear, None)
