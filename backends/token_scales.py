"""Caches of 8-bit numbers with a scale for each token: a second leaf beside the pages of whatever backend."""

from dataclasses import dataclass
from typing import no_type_check

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from .base import PyTree, RaggedIndex
from .token_places import TokenPlaces

LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0}
"""What the largest number of a token becomes."""
LEAST = 2.0**-24
"""No scale is smaller, so that logarithms and reciprocals of scales stay small numbers."""


@no_type_check  # JAX rebuilds it around tracers, shapes and shardings
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenScaled:
    """Pages of 8-bit numbers that mean `number * scale of its token`.

    Args:
        numbers: pages as the backend lays them out.
        scales: fp32 [L, P, 2, page], of keys and of values; positions never written may hold anything.
    """

    numbers: PyTree
    scales: Float[Array, "L P 2 page"]

    @classmethod
    def of(cls, numbers: Num[Array, "L P ..."], page_size: int) -> "TokenScaled":
        """An empty cache."""
        return cls(numbers, jnp.zeros((*numbers.shape[:2], 2, page_size), jnp.float32))

    def with_new(
        self,
        k: Float[Array, "T K H"],
        v: Float[Array, "T K H"],
        dtype: DTypeLike,
        layer: Int[Array, ""],
        index: RaggedIndex,
    ) -> tuple[Float[Array, "T K H"], Float[Array, "T K H"], "TokenScaled"]:
        """New keys and values in fp32, divided by their tokens' scales and not yet rounded to `dtype`; and the cache
        with those scales in it."""
        both = jnp.stack([k, v]).astype(jnp.float32)
        scales = jnp.maximum(jnp.abs(both).max(axis=(2, 3)) / LARGEST[jnp.dtype(dtype).name], LEAST)
        divided = both / scales[..., None, None]
        return divided[0], divided[1], self.with_scales(scales, layer, index)

    def with_scales(self, scales: Float[Array, "2 T"], layer: Int[Array, ""], index: RaggedIndex) -> "TokenScaled":
        """The cache with the scales of a step's tokens in it."""
        page = self.scales.shape[3]
        tokens = TokenPlaces.of(scales.shape[1], index)
        at = jnp.where(tokens.padding, self.scales.shape[1], index.page_table[tokens.row, tokens.position // page])
        kept = self.scales.at[layer, at, :, tokens.position % page].set(scales.T, mode="drop")
        return TokenScaled(self.numbers, kept)


def rounded(x: Float[Array, "..."], dtype: DTypeLike) -> Num[Array, "..."]:
    """The nearest numbers of an 8-bit type, its largest ones for those beyond."""
    largest = LARGEST[jnp.dtype(dtype).name]
    whole = jnp.round(x) if jnp.issubdtype(dtype, jnp.integer) else x
    return jnp.clip(whole, -largest, largest).astype(dtype)
