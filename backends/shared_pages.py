"""Caches whose pages several devices share: what a backend's own form of a cache has to offer for that.

Each device holds a run of positions of every page, in pages of that length; sharding/context.py puts them together.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .base import AttentionSpec, Backend, PyTree, RaggedIndex


@runtime_checkable
class SharedPages(Protocol):
    """One form of a cache; implementations are frozen and hashable."""

    def page_size(self, cache: PyTree) -> int:
        """Positions of a page."""
        ...

    def write(
        self,
        cache: PyTree,
        k: Float[Array, "T K H"],
        v: Float[Array, "T K H"],
        layer: Int[Array, ""],
        page: Int[Array, "T"],
        offset: Int[Array, "T"],
    ) -> PyTree:
        """The cache with a key and a value at each place; pages past the end are left out."""
        ...

    def read(
        self, cache: PyTree, layer: Int[Array, ""], pages: Int[Array, "n"], num_kv_heads: int, head_dim: int
    ) -> tuple[Float[Array, "S K H"], Float[Array, "S K H"]]:
        """Keys and values of some pages, one page behind the other."""
        ...

    def attend_last(
        self,
        q: Float[Array, "B N H"],
        cache: PyTree,
        layer: Int[Array, ""],
        index: RaggedIndex,
        spec: AttentionSpec,
        num_kv_heads: int,
    ) -> tuple[Float[Array, "B N H"], Float[Array, "B N"], PyTree] | None:
        """Of one query for each row, to all of the row's `kv_lens` positions, or the last `window` of them.

        Returns:
            The output, fp32 log-sum-exps (-inf for rows without positions) and the cache, in which nothing is
            changed; None where there is no kernel for it, so that `read` has to do.
        """
        ...


@dataclass(frozen=True)
class ReferencePages:
    """[L, P, page, 2, K, H]."""

    def page_size(self, cache: PyTree) -> int:
        return cache.shape[2]

    def write(
        self,
        cache: PyTree,
        k: Float[Array, "T K H"],
        v: Float[Array, "T K H"],
        layer: Int[Array, ""],
        page: Int[Array, "T"],
        offset: Int[Array, "T"],
    ) -> PyTree:
        return cache.at[layer, page, offset].set(jnp.stack([k, v], axis=1).astype(cache.dtype), mode="drop")

    def read(
        self, cache: PyTree, layer: Int[Array, ""], pages: Int[Array, "n"], num_kv_heads: int, head_dim: int
    ) -> tuple[Float[Array, "S K H"], Float[Array, "S K H"]]:
        gathered = cache[layer, pages]
        keys, values = jnp.moveaxis(gathered.reshape(-1, *gathered.shape[2:]), 1, 0)
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
        return None


@runtime_checkable
class SharesPages(Protocol):
    """A backend whose pages may be shared, or some of whose kind may."""

    def shared_pages(self) -> SharedPages | None:
        """Its form of a cache; None where nothing attends to a part of a page's positions."""
        ...


def shared_pages(backend: Backend) -> SharedPages | None:
    """What makes a backend's pages shareable; None if nothing does."""
    return backend.shared_pages() if isinstance(backend, SharesPages) else None


def last_tokens(
    pages: SharedPages, cache: PyTree, layer: Int[Array, ""], index: RaggedIndex, num_kv_heads: int, head_dim: int
) -> tuple[Float[Array, "B K H"], Float[Array, "B K H"]]:
    """Key and value of each row's last position: a kernel that writes what is new is given what is there already."""
    size = pages.page_size(cache)
    last = jnp.maximum(index.kv_lens - 1, 0)
    page = jnp.take_along_axis(index.page_table, (last // size)[:, None], axis=1)[:, 0]

    def of_row(page: Int[Array, ""], offset: Int[Array, ""]) -> tuple[Array, Array]:
        keys, values = pages.read(cache, layer, page[None], num_kv_heads, head_dim)
        return keys[offset], values[offset]

    return jax.vmap(of_row)(page, last % size)
