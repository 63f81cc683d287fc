"""Tokens that must not come next, and tokens made more or less likely by name.

A mask that would leave a row no token at all is passed over for that draw: a text has to go on, and every token that
the mask stands for is equally forbidden.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .row_state import MAX_BAD_WORD_LEN, SamplingRows


def allow(
    logits: Float[Array, "B V"], rows: SamplingRows, token_mask: Bool[Array, "B V"] | None = None
) -> Float[Array, "B V"]:
    """Leaves the tokens that the row's `allowed` and `token_mask` name."""
    vocab_size = logits.shape[1]
    # One shift gives tokens that follow each other. Were they the bits of one word, XLA would have to lay every word's
    # out anew, which takes the TPU compiler 5.5 s of 128,256 tokens, and this 2.6 s.
    bits = (rows.allowed[:, None, :] >> jnp.arange(32, dtype=jnp.uint32)[:, None]) & 1
    mask = (bits.reshape(bits.shape[0], -1)[:, :vocab_size] > 0) | ~rows.restricted[:, None]
    if token_mask is not None:
        mask &= token_mask
    return _unless_nothing_is_left(jnp.where(mask, logits, -jnp.inf), logits)


def ban_words(
    logits: Float[Array, "B V"], rows: SamplingRows, history: Int[Array, "B S"], positions: Int[Array, "B"]
) -> Float[Array, "B V"]:
    """Takes out each token that would end a bad word whose other tokens end the text."""
    back = jnp.arange(MAX_BAD_WORD_LEN - 1, 0, -1)
    before = positions[:, None] - back
    tail = jnp.take_along_axis(history, jnp.clip(before, 0, history.shape[1] - 1), axis=1)
    tail = jnp.where(before >= 0, tail, -2)[:, None]
    start, last = rows.bad_words[:, :, :-1], rows.bad_words[:, :, -1]
    matches = ((start == tail) | (start == -1)).all(axis=-1)
    return _ban(logits, jnp.where(matches, last, -1))


def ban_stops(logits: Float[Array, "B V"], rows: SamplingRows, positions: Int[Array, "B"]) -> Float[Array, "B V"]:
    """Takes out what would end a text shorter than its least length."""
    return _ban(logits, jnp.where((positions < rows.min_lens)[:, None], rows.stop_ids, -1))


def add_bias(logits: Float[Array, "B V"], rows: SamplingRows) -> Float[Array, "B V"]:
    """Adds each row's bias to the tokens it names."""
    return logits.at[_row(logits), _in_range(rows.bias_ids, logits)].add(rows.bias, mode="drop")


def _ban(logits: Float[Array, "B V"], ids: Int[Array, "B N"]) -> Float[Array, "B V"]:
    masked = logits.at[_row(logits), _in_range(ids, logits)].set(-jnp.inf, mode="drop")
    return _unless_nothing_is_left(masked, logits)


def _unless_nothing_is_left(masked: Float[Array, "B V"], logits: Float[Array, "B V"]) -> Float[Array, "B V"]:
    return jnp.where((masked.max(axis=-1) > -jnp.inf)[:, None], masked, logits)


def _row(logits: Float[Array, "B V"]) -> Int[Array, "B 1"]:
    return jnp.arange(logits.shape[0])[:, None]


def _in_range(ids: Int[Array, "B N"], logits: Float[Array, "B V"]) -> Int[Array, "B N"]:
    """A negative index would count from the end; one past the end is dropped."""
    return jnp.where(ids >= 0, ids, logits.shape[1])
