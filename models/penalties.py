"""Penalties for tokens that a text already holds."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .row_state import SamplingRows

# Texts are counted in pieces, so that a short text in a long context costs what it holds.
_PIECE = 256
# Above what any answer counts to.
_IN_PROMPT = 1 << 30


def uses_penalties(rows: SamplingRows) -> Bool[Array, "B"]:
    """The rows that any penalty changes."""
    return (rows.repetition_penalty != 1) | (rows.presence_penalty != 0) | (rows.frequency_penalty != 0)


def penalise(
    logits: Float[Array, "B V"], rows: SamplingRows, history: Int[Array, "B S"], positions: Int[Array, "B"]
) -> Float[Array, "B V"]:
    """Lowers the logits of tokens in `history[:, :position]`.

    The repetition penalty p (Keskar et al. 2019, CTRL) divides a positive logit by p and multiplies another by it,
    for tokens of prompt and answer. The answer's tokens then lose `presence_penalty`, and `frequency_penalty` for
    each time they occur.
    """
    counts = _count(logits.shape[1], history, rows.prompt_lens, positions)
    answer = counts & (_IN_PROMPT - 1)
    penalty = rows.repetition_penalty[:, None]
    repeated = jnp.where(logits > 0, logits / penalty, logits * penalty)
    logits = jnp.where(counts > 0, repeated, logits)
    lost = rows.frequency_penalty[:, None] * answer + jnp.where(answer > 0, rows.presence_penalty[:, None], 0.0)
    return logits - lost


def _count(
    vocab_size: int, history: Int[Array, "B S"], prompt_lens: Int[Array, "B"], positions: Int[Array, "B"]
) -> Int[Array, "B V"]:
    """How often the answer holds each token, and `_IN_PROMPT` more where the prompt holds it."""
    num_rows, length = history.shape
    row = jnp.arange(num_rows)[:, None]
    first = jnp.minimum(prompt_lens, positions)[:, None]

    def walk(counts: Array, begin: Array, end: Array, enter: Callable[[Array, Array], Array]) -> Array:
        """Enters the tokens at positions `begin` to `end` of each row."""

        def piece(index: Array, counts: Array) -> Array:
            position = begin + index * _PIECE + jnp.arange(_PIECE)[None]
            tokens = jnp.take_along_axis(history, jnp.minimum(position, length - 1), axis=1)
            # Out of range is dropped, and a negative index would count from the end.
            return enter(counts, jnp.where((position < end) & (tokens >= 0), tokens, vocab_size))

        pieces = -(-jnp.clip(end - begin, 0, length).max() // _PIECE)
        return jax.lax.fori_loop(0, pieces, piece, counts)

    counts = jnp.zeros((num_rows, vocab_size), jnp.int32)
    counts = walk(counts, jnp.zeros_like(first), first, lambda x, ids: x.at[row, ids].set(_IN_PROMPT, mode="drop"))
    return walk(counts, first, positions[:, None], lambda x, ids: x.at[row, ids].add(1, mode="drop"))
