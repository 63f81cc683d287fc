"""Logits to tokens, on the device, row by row.

A row's random key is (its seed, its choice index, the absolute position of the token that is drawn, the purpose of
the draw). Nothing else enters, so a request gets the same tokens alone or in any batch, cut in any way.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32


class Purpose(IntEnum):
    """What a random number is drawn for."""

    SAMPLE = 0
    ACCEPT = 1
    RESIDUAL = 2


@no_type_check  # JAX rebuilds it around tracers, shapes and shardings
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplingRows:
    """Each row's sampling parameters.

    `temperature` 0 takes the most likely token. `top_k` 0, `top_p` 1 and `min_p` 0 leave everything in. `seeds` are
    64 bits as two words; `choices` numbers the answers to one request. `token_mask` allows tokens, all where None.
    """

    temperature: Float[Array, "B"]
    top_k: Int[Array, "B"]
    top_p: Float[Array, "B"]
    min_p: Float[Array, "B"]
    seeds: UInt32[Array, "B 2"]
    choices: Int[Array, "B"]
    token_mask: Bool[Array, "B V"] | None = None

    @classmethod
    def greedy(cls, num_rows: int) -> "SamplingRows":
        """Rows that take the most likely token."""
        whole, real = jnp.zeros(num_rows, jnp.int32), jnp.zeros(num_rows, jnp.float32)
        return cls(real, whole, real + 1, real, jnp.zeros((num_rows, 2), jnp.uint32), whole)


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


def sample(logits: Float[Array, "B V"], rows: SamplingRows, positions: Int[Array, "B"]) -> Int[Array, "B"]:
    """Draws the token at `positions[b]` of each row from its logits.

    Order as in transformers: temperature, top-k, top-p, min-p. The cut is found on sorted logits, and only in a
    batch in which some row asks for one.
    """
    logits = logits.astype(jnp.float32)
    if rows.token_mask is not None:
        logits = jnp.where(rows.token_mask, logits, -jnp.inf)
    greedy = jnp.argmax(logits, axis=-1)

    def draw() -> Array:
        scaled = logits / jnp.where(rows.temperature > 0, rows.temperature, 1.0)[:, None]
        cut = (rows.top_k > 0) | (rows.top_p < 1) | (rows.min_p > 0)
        threshold = jax.lax.cond(
            cut.any(), lambda: _threshold(scaled, rows), lambda: jnp.full(cut.shape, -jnp.inf, jnp.float32)
        )
        kept = jnp.where(scaled >= threshold[:, None], scaled, -jnp.inf)
        keys = row_keys(rows.seeds, rows.choices, positions, Purpose.SAMPLE)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, kept.shape[-1:], jnp.float32))(keys)
        return jnp.argmax(kept + noise, axis=-1)

    drawn = jax.lax.cond((rows.temperature > 0).any(), draw, lambda: greedy)
    return jnp.where(rows.temperature > 0, drawn, greedy).astype(jnp.int32)


def _threshold(scaled: Float[Array, "B V"], rows: SamplingRows) -> Float[Array, "B"]:
    """The smallest logit that a row keeps. Ties with it stay, as they do in transformers for top-k."""
    ordered = jnp.sort(scaled, axis=-1, descending=True)
    rank = jnp.arange(ordered.shape[-1])
    top_k = jnp.where(rows.top_k > 0, rows.top_k, ordered.shape[-1])[:, None]
    ordered = jnp.where(rank < top_k, ordered, -jnp.inf)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    # A token stays while those before it have not reached top_p; the first always does.
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    stays = (before < rows.top_p[:, None]) | (rank == 0)
    # min-p measures against the most likely token among those that top-p left.
    stays &= probabilities >= rows.min_p[:, None] * probabilities[:, :1]
    return jnp.where(stays & (ordered > -jnp.inf), ordered, jnp.inf).min(axis=-1)


def num_accepted(candidates: Int[Array, "B C"], drawn: Int[Array, "B C"]) -> Int[Array, "B"]:
    """How many drawn tokens hold: those behind candidates that were themselves drawn, and one more.

    `candidates[b, i]` is the input whose logits gave `drawn[b, i]`; the first is a token of the text, not a guess.
    Draws are keyed by position, so accepting equal tokens gives the text that drawing one at a time would give.
    """
    agrees = candidates[:, 1:] == drawn[:, :-1]
    return 1 + jnp.cumprod(agrees.astype(jnp.int32), axis=-1).sum(axis=-1)
