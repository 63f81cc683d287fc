"""Pages of a GPU's cache that several devices share, each a run of positions of every page."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..base import AttentionSpec, PyTree, RaggedIndex
from ..shared_pages import last_tokens
from .chips import GpuChip
from .decode import decode_attention


@dataclass(frozen=True)
class GpuPages:
    """[L, P, 2, K, page, H].

    Args:
        chip, interpret: of the backend.
    """

    chip: GpuChip
    interpret: bool

    def page_size(self, cache: PyTree) -> int:
        return cache.shape[4]

    def write(
        self,
        cache: PyTree,
        k: Float[Array, "T K H"],
        v: Float[Array, "T K H"],
        layer: Int[Array, ""],
        page: Int[Array, "T"],
        offset: Int[Array, "T"],
    ) -> PyTree:
        for side, x in enumerate((k, v)):
            cache = cache.at[layer, page, side, :, offset].set(x.astype(cache.dtype), mode="drop")
        return cache

    def read(
        self, cache: PyTree, layer: Int[Array, ""], pages: Int[Array, "n"], num_kv_heads: int, head_dim: int
    ) -> tuple[Float[Array, "S K H"], Float[Array, "S K H"]]:
        gathered = jnp.swapaxes(cache[layer, pages], 2, 3)  # [n, 2, page, K, H]
        keys, values = (gathered[:, side].reshape(-1, num_kv_heads, head_dim) for side in range(2))
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
        # A row without positions attends to whatever its first one is, for nothing: the kernel knows no such rows.
        some = replace(index, kv_lens=jnp.maximum(index.kv_lens, 1), places=None)
        k, v = last_tokens(self, cache, layer, some, num_kv_heads, q.shape[2])
        out, cache, lse = decode_attention(
            q, k.astype(cache.dtype), v.astype(cache.dtype), cache, layer, some, spec,
            chip=self.chip, max_queries=1, interpret=self.interpret, return_lse=True,
        )  # fmt: skip
        return out, jnp.where((index.kv_lens > 0)[:, None], lse, -jnp.inf), cache
