"""Penalties for tokens that a text already holds."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .row_state import SamplingRows

# Texts are counted in pieces, so that a short text in a long context costs what it holds.
_PIECE = 256


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
    text, answer = _count(logits.shape[1], history, rows.prompt_lens, positions)
    penalty = rows.repetition_penalty[:, None]
    repeated = jnp.where(logits > 0, logits / penalty, logits * penalty)
    logits = jnp.where(text, repeated, logits)
    lost = rows.frequency_penalty[:, None] * answer + jnp.where(answer > 0, rows.presence_penalty[:, None], 0.0)
    return logits - lost


def _count(
    vocab_size: int, history: Int[Array, "B S"], prompt_lens: Int[Array, "B"], positions: Int[Array, "B"]
) -> tuple[Bool[Array, "B V"], Int[Array, "B V"]]:
    """Which tokens the text holds, and how often its answer holds each."""
    num_rows, length = history.shape
    shape = num_rows, vocab_size
    history = jnp.pad(history, ((0, 0), (0, -length % _PIECE)), constant_values=-1)
    row = jnp.arange(num_rows)[:, None]
    first = jnp.minimum(prompt_lens, positions)[:, None]

    def count(piece: Array, counts: tuple[Array, Array]) -> tuple[Array, Array]:
        text, answer = counts
        tokens = jax.lax.dynamic_slice_in_dim(history, piece * _PIECE, _PIECE, axis=1)
        position = piece * _PIECE + jnp.arange(_PIECE)[None]
        # Out of range is dropped.
        in_text = jnp.where((position < positions[:, None]) & (tokens >= 0), tokens, vocab_size)
        in_answer = jnp.where(position >= first, in_text, vocab_size)
        return text.at[row, in_text].set(True, mode="drop"), answer.at[row, in_answer].add(1, mode="drop")

    pieces = -(-jnp.clip(positions.max(), 0, length) // _PIECE)
    return jax.lax.fori_loop(0, pieces, count, (jnp.zeros(shape, bool), jnp.zeros(shape, jnp.int32)))
