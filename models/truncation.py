"""Draws from the part of a distribution that top-k, typical-p, top-p and min-p leave.

No threshold is looked for where one token can be tested instead. The draw is the largest weight over noise among the
tokens that stay. So it takes the largest among all; if that token stays under top-p (those above it hold less than
top_p), it is the largest among those that stay, too. If not, all tokens down from its weight go, and the next is
taken. With top_p 0.95 the first one holds 19 times out of 20, and each refusal about halves what is left to refuse.

The same code serves the few candidates that are enough for most top-k and min-p and the whole vocabulary, since noise
depends on a token's id alone. Which way a row goes depends on that row alone.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from .exponential import exponential
from .row_state import SamplingRows
from .vocabulary_blocks import argmax, best_blocks

# With blocks of 64 tokens: 4,096 candidates, which hold the 64 most likely.
_NUM_BLOCKS = 64
# Rows that go through the whole vocabulary do so this many at a time.
_GROUP = 8


def draw_truncated(
    logits: Float[Array, "B V"], rows: SamplingRows, keys: Key[Array, "B"], draws: Bool[Array, "B"],
    maxima: Float[Array, "B N"],
) -> Int[Array, "B"]:  # fmt: skip
    """Draws a token for each of the rows in `draws` (others get any); `maxima` are the logits' `block_maxima`."""
    num_rows, vocab_size = logits.shape
    largest = maxima.max(axis=-1)
    # Where nothing but -inf is left, the difference below would be NaN.
    largest = jnp.where(jnp.isfinite(largest), largest, 0)
    temperature = jnp.where(rows.temperature > 0, rows.temperature, 1)

    def weigh(logits: Array, rows: Array | slice = slice(None)) -> Array:
        # The difference comes first, so that no temperature is too low to divide by.
        return jnp.exp((logits - largest[rows, None]) / temperature[rows, None])

    everything = jnp.arange(vocab_size, dtype=jnp.int32)[None]
    if maxima.shape[1] <= _NUM_BLOCKS:
        return _draw(weigh(logits), everything, rows, keys)

    def from_candidates() -> tuple[Array, Array]:
        values, ids, floor = best_blocks(logits, _NUM_BLOCKS, maxima)
        # Of the candidates, those above the floor are all that the vocabulary has above the floor.
        weights = jnp.where(values > floor[:, None], weigh(values), 0)
        by_rank = (rows.top_k > 0) & ((weights > 0).sum(axis=-1) >= rows.top_k)
        by_weight = (rows.top_k <= 0) & (weigh(floor[:, None])[:, 0] < rows.min_p)
        return _draw(weights, ids, rows, keys), by_rank | (by_weight & no_mass)

    no_mass = (rows.top_p >= 1) & (rows.typical_p >= 1)  # what is measured against the whole distribution
    hopeful = draws & ((rows.top_k > 0) | ((rows.min_p > 0) & no_mass))
    nothing = jnp.zeros(num_rows, jnp.int32), jnp.zeros(num_rows, bool)
    tokens, enough = jax.lax.cond(hopeful.any(), from_candidates, lambda: nothing)

    missing = draws & ~enough
    group = min(_GROUP, num_rows)
    order = jnp.pad(jnp.argsort(~missing), (0, -num_rows % group), constant_values=num_rows)

    def draw_group(index: Array, tokens: Array) -> Array:
        chosen = jax.lax.dynamic_slice_in_dim(order, index * group, group)
        inside = jnp.minimum(chosen, num_rows - 1)
        some_rows, some_keys = jax.tree.map(lambda each: each[inside], (rows, keys))
        drawn = _draw(weigh(logits[inside], inside), everything, some_rows, some_keys)
        return tokens.at[jnp.where(missing[inside], chosen, num_rows)].set(drawn, mode="drop")

    return jax.lax.fori_loop(0, -(-missing.sum() // group), draw_group, tokens)


def _draw(
    weights: Float[Array, "B C"], ids: Int[Array, "#B C"], rows: SamplingRows, keys: Key[Array, "B"]
) -> Int[Array, "B"]:
    """One token of each row, out of `ids`. A weight of zero is never drawn beside others."""
    for uses, keep in ((rows.top_k > 0, _keep_top_k), (rows.typical_p < 1, _keep_typical)):
        weights = jax.lax.cond(uses.any(), partial(keep, weights, rows), lambda weights=weights: weights)
    largest = weights.max(axis=-1)
    # min-p measures against the most likely token of those that are left.
    least = (rows.min_p * largest)[:, None]
    race = jnp.where((weights >= least) & (weights > 0), weights / exponential(keys, ids), -1)
    # What a token must have less than this above it. Only where top-p is used is anything summed.
    uses_mass = (rows.top_p < 1).any()
    mass = jax.lax.cond(uses_mass, lambda: rows.top_p * weights.sum(axis=-1), lambda: jnp.zeros_like(largest))
    limit = jnp.where(rows.top_p < 1, mass, jnp.inf)

    def judge(race: Array) -> tuple[Array, Array, Array]:
        """Who comes first in each row, its weight, and whether it stays."""
        first = argmax(race)[:, None]
        weight = jnp.take_along_axis(weights, first, axis=1)
        above = jax.lax.cond(
            uses_mass, lambda: jnp.where(weights > weight, weights, 0).sum(axis=-1), lambda: jnp.zeros_like(largest)
        )
        # The most likely token always stays; so does one whose weight is NaN, or when nobody is left: it must end.
        ends = ~(weight < largest[:, None]) | (jnp.take_along_axis(race, first, axis=1) < 0)
        return first[:, 0], weight[:, 0], (above < limit) | ends[:, 0]

    def again(state: tuple[Array, ...]) -> tuple[Array, ...]:
        race, place, weight, stays = state
        race = jnp.where(weights > weight[:, None], race, -1)
        other, other_weight, now_stays = judge(race)
        return race, jnp.where(stays, place, other), jnp.where(stays, weight, other_weight), stays | now_stays

    _, place, _, _ = jax.lax.while_loop(lambda state: ~state[3].all(), again, (race, *judge(race)))
    return jnp.take_along_axis(jnp.broadcast_to(ids, weights.shape), place[:, None], axis=1)[:, 0]


def _keep_top_k(weights: Float[Array, "B C"], rows: SamplingRows) -> Float[Array, "B C"]:
    """The `top_k` most likely tokens, and those as likely as the last of them."""
    order = jax.lax.bitcast_convert_type(weights, jnp.uint32)
    kept = _covering(order, jnp.ones_like(weights), rows.top_k.astype(jnp.float32))
    return jnp.where(kept | (rows.top_k <= 0)[:, None], weights, 0)


def _keep_typical(weights: Float[Array, "B C"], rows: SamplingRows) -> Float[Array, "B C"]:
    """The tokens whose surprise is nearest to the entropy, up to a mass of typical_p (Meister et al. 2022)."""
    mass = weights.sum(axis=-1, keepdims=True)
    surprise = jnp.log(mass) - jnp.log(weights)
    entropy = jnp.where(weights > 0, weights * surprise, 0).sum(axis=-1, keepdims=True) / mass
    order = ~jax.lax.bitcast_convert_type(jnp.abs(surprise - entropy), jnp.uint32)
    kept = _covering(order, weights, rows.typical_p * mass[:, 0])
    return jnp.where(kept | (rows.typical_p >= 1)[:, None], weights, 0)


def _covering(
    order: UInt32[Array, "B C"], weights: Float[Array, "B C"], target: Float[Array, "B"]
) -> Bool[Array, "B C"]:
    """The tokens first in falling `order` whose weights add up to `target`, ties with the last included.

    All stay where no number of them does. The threshold is found bit by bit; floats that are not negative are in the
    order of their bits.
    """

    def narrow(step: Array, threshold: Array) -> Array:
        trial = threshold | (jnp.uint32(1 << 31) >> step.astype(jnp.uint32))
        enough = jnp.where(order >= trial[:, None], weights, 0).sum(axis=-1) >= target
        return jnp.where(enough, trial, threshold)

    threshold = jax.lax.fori_loop(0, 32, narrow, jnp.zeros(target.shape, jnp.uint32))
    return order >= threshold[:, None]
