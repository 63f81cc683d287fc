"""Where each token of a ragged batch belongs."""

from dataclasses import dataclass
from typing import no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from .base import RaggedIndex


@no_type_check  # JAX rebuilds it around tracers, shapes and shardings
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenPlaces:
    """The row, the place in it and the position of each token. Padding has the last row; its places mean nothing."""

    row: Int[Array, "T"]
    offset: Int[Array, "T"]
    position: Int[Array, "T"]
    padding: Bool[Array, "T"]

    @classmethod
    def of(cls, num_tokens: int, index: RaggedIndex) -> "TokenPlaces":
        if index.places is not None and index.places.row.shape == (num_tokens,):
            return index.places
        token = jnp.arange(num_tokens)
        # By comparing: the steps of a search are calls of their own on a TPU, in each layer.
        row = jnp.searchsorted(index.query_starts[1:], token, side="right", method="compare_all")
        padding = row >= index.kv_lens.shape[0]
        row = jnp.minimum(row, index.kv_lens.shape[0] - 1)
        offset = token - index.query_starts[row]
        return cls(row, offset, index.kv_lens[row] - jnp.diff(index.query_starts)[row] + offset, padding)
