"""Log-probabilities of tokens under the raw logits, before any sampling parameter."""

from dataclasses import dataclass
from typing import no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .vocabulary_blocks import best_blocks, block_maxima, largest

MAX_LOGPROBS = 20


@no_type_check  # JAX rebuilds it around tracers, shapes and shardings
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithms of probabilities, and ranks from 1, the most likely.

    `top_ids` and `top` are the most likely tokens in falling order, of equals the smaller id first; a vocabulary
    smaller than their number leaves ids of -1 at the end.
    """

    chosen: Float[Array, "B"]
    rank: Int[Array, "B"]
    top_ids: Int[Array, "B MAX_LOGPROBS"]
    top: Float[Array, "B MAX_LOGPROBS"]

    @classmethod
    def zeros(cls, num_rows: int) -> "TokenLogprobs":
        """What stands where nobody asked."""
        whole, real = jnp.zeros(num_rows, jnp.int32), jnp.zeros(num_rows, jnp.float32)
        return cls(real, whole, jnp.zeros((num_rows, MAX_LOGPROBS), jnp.int32), jnp.zeros((num_rows, MAX_LOGPROBS)))


def token_logprobs(
    logits: Float[Array, "B V"], targets: Int[Array, "B"], maxima: Float[Array, "B N"] | None = None
) -> TokenLogprobs:
    """The log-probability and rank of `targets[b]`, and the most likely tokens, of each row.

    `maxima` are the logits' `block_maxima`, where they are known already. Tokens as likely as the target do not count
    for its rank.
    """
    maxima = block_maxima(logits) if maxima is None else maxima
    best = maxima.max(axis=-1, keepdims=True)
    total = best + jnp.log(jnp.exp(logits - best).sum(axis=-1, keepdims=True))
    target = jnp.take_along_axis(logits, targets[:, None], axis=1)

    values, ids, _ = best_blocks(logits, MAX_LOGPROBS, maxima)
    count = min(MAX_LOGPROBS, values.shape[1])
    top, places = largest(values, count)
    fill = ((0, 0), (0, MAX_LOGPROBS - count))
    top_ids = jnp.pad(jnp.take_along_axis(ids, places, axis=1), fill, constant_values=-1)
    # Only a target that is not among the most likely needs a look at the whole vocabulary.
    # Counted in fp32, exact up to 2**24 tokens: XLA:CPU adds integers at half the speed.
    above = jax.lax.cond(
        (target[:, 0] >= top[:, -1]).all(),
        lambda: jnp.where(top > target, 1.0, 0.0).sum(axis=-1),
        lambda: jnp.where(logits > target, 1.0, 0.0).sum(axis=-1),
    )
    return TokenLogprobs(
        chosen=(target - total)[:, 0],
        rank=1 + above.astype(jnp.int32),
        top_ids=top_ids,
        top=jnp.pad(top - total, fill, constant_values=-jnp.inf),
    )
