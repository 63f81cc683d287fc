"""Logits of a vocabulary that is split over devices, gathered no further than the rows' parameters need.

A row that takes the most likely token needs the best of each part; a row with a small top-k needs as many from each.
What is gathered goes back to its places among -inf, so that sampling need not know. Other parameters (penalties, masks,
bias, log-probabilities, top-p over everything) look at every token: where a row has one, all is gathered.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .penalties import uses_penalties
from .placement import Placement
from .row_state import RowState, take
from .vocabulary_blocks import argmax

MOST_CANDIDATES = 64
"""Of each part: what a top-k up to this needs."""


def gather_logits(
    part: Float[Array, "B part"],
    placement: Placement,
    vocab_size: int,
    state: RowState,
    slots: Int[Array, "B"],
    positions: Int[Array, "B"],
    token_mask: Bool[Array, "B V"] | None = None,
) -> Float[Array, "B V"]:
    """The logits, or those that `draw` will look at, others being -inf; `part` are this device's.

    Rows, slots, positions and mask are as for `draw`; the part may end with padding behind the vocabulary.
    """
    if placement.parts("vocab") == 1 or token_mask is not None:
        return placement.gather(part, "vocab", 1)
    size = part.shape[1]
    most = min(MOST_CANDIDATES, size)
    used = slots < state.history.shape[0]
    row = take(state.rows, jnp.minimum(slots, state.history.shape[0] - 1))
    all_matter = (
        row.restricted
        | uses_penalties(row)
        | (positions < row.min_lens)
        | (row.num_logprobs >= 0)
        | (row.bias_ids >= 0).any(axis=-1)
        | (row.bad_words[:, :, -1] >= 0).any(axis=-1)
    )
    random = row.temperature > 0
    few = ~all_matter & (~random | ((row.top_k > 0) & (row.top_k <= most)))
    first = placement.offset("vocab", size)
    inside = first + jnp.arange(size) < vocab_size
    part = jnp.where(inside, part, -jnp.inf)

    def among(values: Array, places: Array) -> tuple[Array, Array]:
        """All devices' candidates in their places among -inf, and as they are: [parts B count]."""
        ids = (places + first).astype(jnp.int32)
        bits = jnp.concatenate([jax.lax.bitcast_convert_type(values, jnp.int32), ids], axis=1)
        every = placement.gather(bits[None], "vocab", 0)
        values = jax.lax.bitcast_convert_type(every[:, :, : values.shape[1]], jnp.float32)
        ids = every[:, :, values.shape[2] :]
        rows = jnp.arange(len(part))[None, :, None]
        whole = jnp.full((len(part), vocab_size), -jnp.inf).at[rows, ids].set(values, mode="drop")
        return whole, values

    def best() -> tuple[Array, Bool[Array, ""]]:
        place = argmax(part)[:, None]
        return among(jnp.take_along_axis(part, place, axis=1), place)[0], jnp.bool_(True)

    def candidates() -> tuple[Array, Bool[Array, ""]]:
        whole, values = among(*jax.lax.top_k(part, most))
        # A token as likely as the last of a part's candidates may have been left behind.
        least = values[:, :, -1].max(axis=0)
        last = jax.lax.top_k(jnp.moveaxis(values, 0, 1).reshape(len(part), -1), most)[0]
        wanted = jnp.take_along_axis(last, jnp.clip(row.top_k - 1, 0, last.shape[1] - 1)[:, None], axis=1)[:, 0]
        enough = ~used | ~random | (wanted > least) | (most == size)
        return whole, enough.all()

    def nothing() -> tuple[Array, Bool[Array, ""]]:
        return jnp.zeros((len(part), vocab_size)), jnp.bool_(False)

    kind = jnp.where((used & ~few).any(), 2, jnp.where((used & random).any(), 1, 0))
    whole, enough = jax.lax.switch(kind, (best, candidates, nothing))
    return jax.lax.cond(enough, lambda: whole, lambda: placement.gather(part, "vocab", 1))
