"""Logits to tokens, on the device, row by row.

A row's random key is (its seed, its choice index, the absolute position of the token that is drawn, the purpose of
the draw). Nothing else enters, so a request gets the same tokens alone or in any batch, cut in any way.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from .logprobs import TokenLogprobs, token_logprobs
from .penalties import penalise, uses_penalties
from .row_state import RowState, SamplingRows, take
from .token_masks import add_bias, allow, ban_stops, ban_words
from .truncation import draw_truncated
from .vocabulary_blocks import argmax, block_maxima


class Purpose(IntEnum):
    """What a random number is drawn for."""

    SAMPLE = 0
    ACCEPT = 1
    RESIDUAL = 2


def row_keys(
    seeds: UInt32[Array, "B 2"], choices: Int[Array, "B"], positions: Int[Array, "B"], purpose: Purpose
) -> Key[Array, "B"]:
    """One random key for each row."""

    def key(seed: Array, choice: Array, position: Array) -> Array:
        key = jax.random.wrap_key_data(seed, impl="threefry2x32")
        for part in (choice, position, int(purpose)):
            key = jax.random.fold_in(key, part)
        return key

    return jax.vmap(key)(seeds, choices, positions)


def draw(
    logits: Float[Array, "B V"],
    state: RowState,
    slots: Int[Array, "B"],
    positions: Int[Array, "B"],
    token_mask: Bool[Array, "B V"] | None = None,
) -> tuple[Int[Array, "B"], TokenLogprobs]:
    """Draws the token that will stand at `positions[b]` of the text in slot `slots[b]`, by that slot's parameters.

    A slot of R marks an empty row, whose token means nothing. Log-probabilities are zeros where no row asks for them.
    What happens to the logits, in this order:

    1. log-probabilities are taken;
    2. tokens that are not allowed, bad words, and stop ids before the least length are masked: nothing below brings
       them back;
    3. repetition penalty (prompt and answer), then frequency and presence penalty (answer);
    4. bias;
    5. temperature 0: the most likely token. Otherwise the temperature;
    6. top-k, typical-p, top-p, min-p, each on what the last one left;
    7. one of what is left is drawn, by noise that comes of the row's key alone (`truncation`).

    A feature that no row of the batch uses is not computed.
    """
    logits = logits.astype(jnp.float32)
    num_slots = state.history.shape[0]
    used = slots < num_slots
    slots = jnp.minimum(slots, num_slots - 1)

    def rows() -> SamplingRows:  # called inside a branch, what only that branch looks at is gathered there
        return take(state.rows, slots)

    def history() -> Array:
        return take(state.history, slots)

    row = rows()
    random = used & (row.temperature > 0)
    masks = (
        (row.restricted | (token_mask is not None), lambda x: allow(x, rows(), token_mask)),
        ((row.bad_words[:, :, -1] >= 0).any(axis=-1), lambda x: ban_words(x, rows(), history(), positions)),
        (positions < row.min_lens, lambda x: ban_stops(x, rows(), positions)),
    )
    changes = (
        (uses_penalties(row), lambda x: penalise(x, rows(), history(), positions)),
        ((row.bias_ids >= 0).any(axis=-1), lambda x: add_bias(x, rows())),
    )
    masked, changed = (jnp.stack([(used & uses).any() for uses, _ in some]) for some in (masks, changes))
    maxima = block_maxima(logits)

    def each(some: Sequence[tuple[Array, Callable[[Array], Array]]], wanted: Array, x: Array) -> Array:
        # A branch that changes nothing copies all logits on the CPU, so what nobody wants is passed over as one.
        def one_by_one(x: Array) -> Array:
            for want, (_, shape) in zip(wanted, some, strict=True):
                x = jax.lax.cond(want, shape, lambda x: x, x)
            return x

        return jax.lax.cond(wanted.any(), one_by_one, lambda x: x, x)

    def shaped() -> Array:
        x = each(changes, changed, each(masks, masked, logits))
        best = block_maxima(x)
        return jax.lax.cond(random.any(), _draw, lambda x, best, *_: argmax(x, best), x, best, rows(), positions, used)

    tokens = jax.lax.cond(masked.any() | changed.any() | random.any(), shaped, lambda: argmax(logits, maxima))
    logprobs = jax.lax.cond(
        (used & (row.num_logprobs >= 0)).any(),
        lambda: token_logprobs(logits, tokens, maxima),
        lambda: TokenLogprobs.zeros(len(slots)),
    )
    return tokens, logprobs


def take_best(logits: Float[Array, "B V"]) -> tuple[Int[Array, "B"], TokenLogprobs]:
    """What `draw` gives where no row asks for anything but its most likely token."""
    return argmax(logits), TokenLogprobs.zeros(len(logits))


def _draw(
    logits: Float[Array, "B V"], maxima: Float[Array, "B N"], rows: SamplingRows, positions: Int[Array, "B"],
    used: Bool[Array, "B"],
) -> Int[Array, "B"]:  # fmt: skip
    """Draws in the rows that have a temperature, and takes the most likely token in the others."""
    best = argmax(logits, maxima)
    random = used & (rows.temperature > 0)
    keys = row_keys(rows.seeds, rows.choices, positions, Purpose.SAMPLE)
    drawn = draw_truncated(logits, rows, keys, random, maxima)
    return jnp.where(random & (drawn >= 0), drawn, best)


def num_accepted(candidates: Int[Array, "B C"], drawn: Int[Array, "B C"]) -> Int[Array, "B"]:
    """How many drawn tokens hold: those behind candidates that were themselves drawn, and one more.

    `candidates[b, i]` is the input whose logits gave `drawn[b, i]`; the first is a token of the text, not a guess.
    Draws are keyed by position, so accepting equal tokens gives the text that drawing one at a time would give.
    """
    agrees = candidates[:, 1:] == drawn[:, :-1]
    return 1 + jnp.cumprod(agrees.astype(jnp.int32), axis=-1).sum(axis=-1)
