"""Attention whose KV cache is split along heads where the projections are not: heads are exchanged for tokens.

In a step whose tokens are split, each device projects its own tokens to all heads; an all-to-all makes of that all
tokens of its own heads, the chip attends as on one device, and a second all-to-all goes back (Jacobs et al., DeepSpeed
Ulysses, 2023; Pope et al. 2022 do so with batches). In the other steps each device has all tokens and all heads, takes
its own heads, and an all-gather puts them together again.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..backends.base import AttentionSpec, PyTree, RaggedIndex
from .layout import Axes
from .wrapped import Wrapped


@dataclass(frozen=True)
class ExchangeBackend(Wrapped):
    """
    Args:
        axes: mesh axes that split the cache's heads and not the projections'.
        parts: devices along them.
        split: whether the tokens of this step are split along them.
        as_stored: weights keep the checkpoint's form, since they are gathered in steps with prompts, which packed ones
            cannot be.
    """

    axes: Axes = ()
    parts: int = 1
    split: bool = False
    as_stored: bool = False

    def prepare_params(self, params: PyTree) -> PyTree:
        return params if self.as_stored else self.inner.prepare_params(params)

    def ragged_attention(
        self,
        q: Float[Array, "T N H"],
        k: Float[Array, "T K H"],
        v: Float[Array, "T K H"],
        cache: PyTree,
        layer: Int[Array, ""],
        index: RaggedIndex,
        spec: AttentionSpec,
        sinks: Float[Array, "N_here"] | None = None,
    ) -> tuple[Float[Array, "T N H"], PyTree]:
        """As Backend.ragged_attention; `sinks` are those of the projections' heads, or of the cache's."""
        if not self.axes:
            return self.inner.ragged_attention(q, k, v, cache, layer, index, spec, sinks)
        heads, kv_heads = q.shape[1] // self.parts, k.shape[1] // self.parts
        parts = [x.reshape(x.shape[0], self.parts, -1, x.shape[2]) for x in (q, k, v)]
        together = jnp.concatenate(parts, axis=2)  # of each part its queries, keys and values
        if self.split:
            mine = jax.lax.all_to_all(together, self.axes, split_axis=1, concat_axis=0, tiled=True)[:, 0]
        else:
            mine = together[:, jax.lax.axis_index(self.axes)]
        q, k, v = jnp.split(mine, (heads, heads + kv_heads), axis=1)
        if sinks is not None and sinks.shape[0] != heads:
            sinks = jax.lax.dynamic_slice_in_dim(sinks, jax.lax.axis_index(self.axes) * heads, heads)
        out, cache = self.inner.ragged_attention(q, k, v, cache, layer, index, spec, sinks)
        if self.split:
            return jax.lax.all_to_all(out, self.axes, split_axis=0, concat_axis=1, tiled=True), cache
        return jax.lax.all_gather(out, self.axes, axis=1, tiled=True), cache
