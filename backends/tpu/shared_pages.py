"""Pages of a TPU's cache that several devices share, each a run of positions of every page."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..base import AttentionSpec, PyTree, RaggedIndex
from ..shared_pages import last_tokens
from .cache import pages_of
from .decode import decode_attention


@dataclass(frozen=True)
class TpuPages:
    """[L, P, 2 * page, lanes], as cache.py describes; without scales.

    Args:
        generation, interpret: of the backend.
    """

    generation: str
    interpret: bool

    def page_size(self, cache: PyTree) -> int:
        return pages_of(cache).shape[2] // 2

    def write(
        self,
        cache: PyTree,
        k: Float[Array, "T K H"],
        v: Float[Array, "T K H"],
        layer: Int[Array, ""],
        page: Int[Array, "T"],
        offset: Int[Array, "T"],
    ) -> PyTree:
        size = self.page_size(cache)
        for x, first in ((k, 0), (v, size)):
            rows = x.reshape(x.shape[0], -1)
            rows = jnp.pad(rows, ((0, 0), (0, cache.shape[3] - rows.shape[1])))
            if jnp.issubdtype(cache.dtype, jnp.integer):
                rows = jnp.clip(jnp.round(rows.astype(jnp.float32)), -127, 127)
            elif cache.dtype.itemsize == 1:
                most = float(jnp.finfo(cache.dtype).max)
                rows = jnp.clip(rows.astype(jnp.float32), -most, most)
            cache = cache.at[layer, page, first + offset].set(rows.astype(cache.dtype), mode="drop")
        return cache

    def read(
        self, cache: PyTree, layer: Int[Array, ""], pages: Int[Array, "n"], num_kv_heads: int, head_dim: int
    ) -> tuple[Float[Array, "S K H"], Float[Array, "S K H"]]:
        size = self.page_size(cache)
        gathered = cache[layer, pages][..., : num_kv_heads * head_dim]
        keys, values = (part.reshape(-1, num_kv_heads, head_dim) for part in (gathered[:, :size], gathered[:, size:]))
        return keys, values

    def attend_last(
        self,
        q: Float[Array, "B N H"],
        cache: PyTree,
        layer: Int[Array, ""],
        index: RaggedIndex,
        spec: AttentionSpec,
        num_kv_heads: int,
    ) -> tuple[Float[Array, "B N H"], Float[Array, "B N"], PyTree] | None:
        k, v = last_tokens(self, cache, layer, index, num_kv_heads, q.shape[2])
        out, cache, lse = decode_attention(
            q, k.astype(q.dtype), v.astype(q.dtype), cache, layer, index, spec,
            generation=self.generation, interpret=self.interpret, return_lse=True, max_decode_len=1,
        )  # fmt: skip
        return out, lse, cache
