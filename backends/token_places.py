"""Where each token of a ragged batch belongs."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from .base import RaggedIndex


@dataclass(frozen=True)
class TokenPlaces:
    """The row, the place in it and the position of each token. Padding has the last row; its places mean nothing."""

    row: Int[Array, "T"]
    offset: Int[Array, "T"]
    position: Int[Array, "T"]
    padding: Bool[Array, "T"]

    @classmethod
    def of(cls, num_tokens: int, index: RaggedIndex) -> "TokenPlaces":
        token = jnp.arange(num_tokens)
        # By comparing: the steps of a search are calls of their own on a TPU, in each layer.
        row = jnp.searchsorted(index.query_starts[1:], token, side="right", method="compare_all")
        padding = row >= index.kv_lens.shape[0]
        row = jnp.minimum(row, index.kv_lens.shape[0] - 1)
        offset = token - index.query_starts[row]
        return cls(row, offset, index.kv_lens[row] - jnp.diff(index.query_starts)[row] + offset, padding)
