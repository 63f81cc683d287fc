"""Activations of 8 bits: what products with weights that round theirs take in place of tokens."""

from dataclasses import dataclass, field
from typing import no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num


@no_type_check  # JAX rebuilds it around tracers, shapes and shardings
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RoundedTokens:
    """Tokens [T, K] that stand for `numbers * scale`.

    Args:
        numbers: of the type that the weights have.
        scale: of each token.
        dtype: of the tokens that they stand for, and so of products that nobody asks for in another.
    """

    numbers: Num[Array, "T K"]
    scale: Float[Array, "T"]
    dtype: jnp.dtype = field(metadata={"static": True})
