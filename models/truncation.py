"""Draws from the part of a distribution that top-k, typical-p, top-p and min-p leave.

A draw goes through two levels, so that noise is made for a block of the vocabulary and not for all of it: first a
block, by the weight that it holds, then a token of the block, each the largest of log-weight and Gumbel noise.

No threshold is looked for where the token that was drawn can be tested instead. If it stays under top-p (those above
it hold less than top_p) and min-p, it is the draw. If not, it and everything below it go, and one of the rest is drawn
with fresh noise, which leaves the shares of those that stay as they are. With top_p 0.95 the first one holds 19 times
out of 20, and each refusal about halves what is left to refuse.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from .row_state import SamplingRows, take
from .vocabulary_blocks import BLOCK, argmax, best_blocks, blocks, largest

# A top-k up to this is found among so many blocks.
_NUM_BEST = 64
# Rows that need a look of their own at the whole vocabulary get it so many at a time.
_GROUP = 8


@no_type_check  # JAX rebuilds it around tracers
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Draws:
    """Rows on their way to a token.

    Tokens with logits from `least` to `most` can still be drawn; `sums` is what each block holds of them. Weights are
    such that the most likely token weighs 1; `total` is what there was at first.
    """

    rows: SamplingRows
    keys: Key[Array, "B"]
    least: Float[Array, "B"]
    most: Float[Array, "B"]
    best: Float[Array, "B"]
    total: Float[Array, "B"]
    sums: Float[Array, "B N"]
    refusals: Int[Array, "B"]
    tokens: Int[Array, "B"]
    done: Bool[Array, "B"]

    def weigh(self, logits: Float[Array, "B N C"], least: Float[Array, "B"], min_p: Float[Array, "B"]) -> Array:
        """The weights of tokens from `least` to `most` that reach `min_p`, 0 for others: [B N C]."""
        per_row = lambda x: x[:, None, None]  # noqa: E731
        temperature = jnp.where(self.rows.temperature > 0, self.rows.temperature, 1)
        # The difference comes first, so that no temperature is too low to divide by.
        weights = jnp.exp((logits - per_row(self.best)) / per_row(temperature))
        within = (logits >= per_row(least)) & (logits <= per_row(self.most))
        return jnp.where(within & (weights >= per_row(min_p)), weights, 0)

    def hold(self, logits: Float[Array, "B V"], least: Float[Array, "B"], min_p: Float[Array, "B"]) -> Array:
        """What each block holds of such tokens: [B N]. XLA would sum over them again for a sum over the blocks."""
        return jax.lax.optimization_barrier(self.weigh(blocks(logits), least, min_p).sum(axis=-1))


def draw_truncated(
    logits: Float[Array, "B V"], rows: SamplingRows, keys: Key[Array, "B"], draws: Bool[Array, "B"],
    maxima: Float[Array, "B N"],
) -> Int[Array, "B"]:  # fmt: skip
    """Draws a token for each of the rows in `draws` (others get any), -1 where there is nothing to draw from, as among
    NaN; `maxima` are the logits' `block_maxima`."""
    num_rows = len(logits)
    top = maxima.max(axis=-1)
    lowest = jnp.full_like(top, -jnp.inf)
    by_rank, by_surprise = draws & (rows.top_k > 0), draws & (rows.typical_p < 1)
    least = jax.lax.cond(by_rank.any(), lambda: _top_k(logits, maxima, rows, by_rank), lambda: lowest)
    least, most = jax.lax.cond(by_surprise.any(), lambda: _typical(logits, rows, by_surprise, least, top),
                               lambda: (least, top))  # fmt: skip
    # Where nothing but -inf is left, a difference to it would be NaN.
    best = jnp.where(jnp.isfinite(most), most, 0)
    real, whole = jnp.zeros(num_rows), jnp.zeros(num_rows, jnp.int32)
    start = _Draws(rows, keys, least, most, best, real, jnp.zeros_like(maxima), whole, whole, ~draws)
    sums = start.hold(logits, least, real)
    start = replace(start, sums=sums, total=sums.sum(axis=-1))

    def again(state: _Draws) -> _Draws:
        """One more try for some of the rows that were refused."""
        if num_rows <= _GROUP:
            return _try(logits, state)
        chosen = _first(~state.done, _GROUP)
        tried = _try(take(logits, chosen), take(state, chosen))
        return jax.tree.map(lambda x, new: x.at[chosen].set(new, wrap_negative_indices=False), state, tried)

    state = start if num_rows <= _GROUP else _try(logits, start)
    return jax.lax.while_loop(lambda state: ~state.done.all(), again, state).tokens


def _try(logits: Float[Array, "B V"], state: _Draws) -> _Draws:
    """Draws a token in each of the rows that are not done, and keeps or refuses it."""
    rows = state.rows
    keys = jax.vmap(lambda key, count: jax.random.split(jax.random.fold_in(key, count)))(state.keys, state.refusals)

    def race(weights: Array, keys: Array) -> Array:
        return jnp.log(weights) + jax.vmap(lambda key: jax.random.gumbel(key, weights.shape[1:], weights.dtype))(keys)

    block = argmax(race(state.sums, keys[:, 0]))[:, None]
    x = jnp.take_along_axis(blocks(logits), block[:, :, None], axis=1, mode="promise_in_bounds")
    # What min-p leaves out is refused once; then it is out of the sums, too.
    min_p = jnp.where(state.refusals > 0, rows.min_p, 0)
    weights = state.weigh(x, state.least, min_p)[:, 0]
    place = jnp.argmax(race(weights, jax.vmap(jax.random.fold_in)(keys[:, 1], block[:, 0])), axis=-1)[:, None]
    drawn = jnp.arange(BLOCK) == place
    logit, weight = (jnp.where(drawn, each, -jnp.inf).max(axis=-1) for each in (x[:, 0], weights))

    cuts = ~state.done & ((rows.top_p < 1) | (rows.min_p > 0))
    least = _next(logit)
    above = jax.lax.cond(cuts.any(), lambda: state.hold(logits, least, rows.min_p), lambda: state.sums)
    limit = jnp.where(rows.top_p < 1, rows.top_p * state.total, jnp.inf)
    stays = ~cuts | ((weight >= rows.min_p) & (above.sum(axis=-1) < limit))
    # The most likely token always stays.
    nothing = ~(weight > 0)
    stays |= (weight >= 1) | nothing
    token = jnp.where(nothing, -1, (block * BLOCK + place)[:, 0].astype(jnp.int32))
    return replace(
        state,
        least=least,
        sums=above,
        refusals=state.refusals + 1,
        tokens=jnp.where(state.done, state.tokens, token),
        done=state.done | stays,
    )


def _next(x: Float[Array, "B"]) -> Float[Array, "B"]:
    """The next larger float that is none of the tiny ones, which processors take for zero."""
    tiny = jnp.finfo(x.dtype).tiny
    return jnp.where(jnp.abs(x) <= tiny, tiny, jnp.nextafter(x, jnp.inf))


def _top_k(
    logits: Float[Array, "B V"], maxima: Float[Array, "B N"], rows: SamplingRows, uses: Bool[Array, "B"]
) -> Float[Array, "B"]:
    """The logit of the `top_k`th token, -inf where a row does not use it."""
    top = largest(best_blocks(logits, _NUM_BEST, maxima)[0], min(_NUM_BEST, logits.shape[1]))[0]
    few = uses & (rows.top_k <= top.shape[1])
    place = jnp.clip(rows.top_k - 1, 0, top.shape[1] - 1)[:, None]
    least = jnp.where(few, jnp.take_along_axis(top, place, axis=1)[:, 0], -jnp.inf)

    def search(logits: Array, rows: SamplingRows, _: tuple[Array, ...]) -> tuple[Array]:
        kept = _covering(_in_order(logits), jnp.ones_like(logits), rows.top_k.astype(jnp.float32))
        return (jnp.where(kept, logits, jnp.inf).min(axis=-1),)

    return _for_some(search, uses & ~few & (rows.top_k < logits.shape[1]), logits, rows, (least,))[0]


def _typical(
    logits: Float[Array, "B V"], rows: SamplingRows, uses: Bool[Array, "B"], least: Float[Array, "B"],
    most: Float[Array, "B"],
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:  # fmt: skip
    """The least and the largest logit of the tokens whose surprise is nearest to the entropy, up to a mass of typical_p
    (Meister et al. 2022); they are neighbours in the order of their logits."""

    def search(logits: Array, rows: SamplingRows, bounds: tuple[Array, ...]) -> tuple[Array, Array]:
        least, most = (bound[:, None] for bound in bounds)
        weights = jnp.where(logits >= least, jnp.exp((logits - most) / rows.temperature[:, None]), 0)
        mass = weights.sum(axis=-1, keepdims=True)
        surprise = jnp.log(mass) - jnp.log(weights)
        entropy = jnp.where(weights > 0, weights * surprise, 0).sum(axis=-1, keepdims=True) / mass
        kept = (weights > 0) & _covering(~_bits(jnp.abs(surprise - entropy)), weights, rows.typical_p * mass[:, 0])
        return jnp.where(kept, logits, jnp.inf).min(axis=-1), jnp.where(kept, logits, -jnp.inf).max(axis=-1)

    return _for_some(search, uses, logits, rows, (least, most))


def _for_some[*Bounds](
    search: Callable[[Array, SamplingRows, tuple[*Bounds]], tuple[*Bounds]], uses: Bool[Array, "B"],
    logits: Float[Array, "B V"], rows: SamplingRows, bounds: tuple[*Bounds],
) -> tuple[*Bounds]:  # fmt: skip
    """What `search` finds for the rows that `uses` names, a group at a time; `bounds` ([B] each) for the others."""
    num_rows = len(logits)
    if num_rows <= _GROUP:
        found = jax.lax.cond(uses.any(), lambda: search(logits, rows, bounds), lambda: bounds)
        return jax.tree.map(lambda new, old: jnp.where(uses, new, old), found, bounds)

    def step(state: tuple[Array, tuple[*Bounds]]) -> tuple[Array, tuple[*Bounds]]:
        missing, bounds = state
        chosen = _first(missing, min(_GROUP, num_rows))
        found = search(take(logits, chosen), take(rows, chosen), take(bounds, chosen))
        kept = jnp.where(take(missing, chosen), chosen, num_rows)
        return missing.at[chosen].set(False), jax.tree.map(
            lambda x, new: x.at[kept].set(new, mode="drop", wrap_negative_indices=False), bounds, found
        )

    return jax.lax.while_loop(lambda state: state[0].any(), step, (uses, bounds))[1]


def _first(wanted: Bool[Array, "B"], count: int) -> Int[Array, "count"]:
    """Where the first of `wanted` are, filled up with others."""
    return jax.lax.top_k(wanted.astype(jnp.float32), count)[1]


def _bits(x: Float[Array, "B C"]) -> UInt32[Array, "B C"]:
    """Of floats that are not negative: in their order."""
    return jax.lax.bitcast_convert_type(x, jnp.uint32)


def _in_order(x: Float[Array, "B C"]) -> UInt32[Array, "B C"]:
    """Whole numbers in the order of any floats."""
    bits = _bits(x)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _covering(
    order: UInt32[Array, "B C"], weights: Float[Array, "B C"], target: Float[Array, "B"]
) -> Bool[Array, "B C"]:
    """The tokens first in falling `order` whose weights add up to `target`, ties with the last included.

    All stay where no number of them does. The threshold is found bit by bit.
    """

    def narrow(step: Array, threshold: Array) -> Array:
        trial = threshold | (jnp.uint32(1 << 31) >> step.astype(jnp.uint32))
        enough = jnp.where(order >= trial[:, None], weights, 0).sum(axis=-1) >= target
        return jnp.where(enough, trial, threshold)

    threshold = jax.lax.fori_loop(0, 32, narrow, jnp.zeros(target.shape, jnp.uint32))
    return order >= threshold[:, None]
