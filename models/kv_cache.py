"""The paged key/value cache and the batch of one step."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import no_type_check

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from ..backends.base import Backend, PyTree, RaggedIndex
from ..backends.token_places import TokenPlaces
from .config import ModelConfig

KVCache = tuple[PyTree, ...]
"""One donated array (in a form that the backend chose) for each of config.cache_groups."""


@no_type_check  # JAX rebuilds it around tracers, shapes and shardings
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RaggedBatch:
    """The inputs of one step: B rows with any number of tokens each, packed into T and padded to a bucket.

    Row b owns tokens `query_starts[b] : query_starts[b + 1]`; they are the last of its `kv_lens[b]` positions. Each
    cache group has its own page table. Logits are wanted of the tokens `logit_indices` (C for each row: 1, or k + 1
    where k of a row's tokens are candidates to be verified). Empty rows have kv_lens 0.

    `adapter_ids` picks a low-rank adapter for each row; models hold none yet, and a batch that names one is refused.
    """

    tokens: Int[Array, "T"]
    query_starts: Int[Array, "B+1"]
    kv_lens: Int[Array, "B"]
    page_tables: tuple[Int[Array, "B pages"], ...]
    logit_indices: Int[Array, "B C"]
    adapter_ids: Int[Array, "B"] | None = None
    max_query_len: int | None = field(default=None, metadata={"static": True})

    @classmethod
    def single(
        cls, tokens: Sequence[int], start: int, *, num_tokens: int, num_pages: int, num_groups: int
    ) -> "RaggedBatch":
        """One row that appends `tokens` from position `start` on, padded to num_tokens; pages in order."""
        count = len(tokens)
        return cls(
            tokens=jnp.asarray([*tokens, *[0] * (num_tokens - count)], jnp.int32),
            query_starts=jnp.asarray([0, count], jnp.int32),
            kv_lens=jnp.asarray([start + count], jnp.int32),
            page_tables=(jnp.arange(num_pages, dtype=jnp.int32)[None],) * num_groups,
            logit_indices=jnp.asarray([[count - 1]], jnp.int32),
        )

    def rows(self) -> Int[Array, "T"]:
        """The row that each token belongs to; B at padding."""
        token = jnp.arange(self.tokens.shape[0], dtype=jnp.int32)
        return jnp.searchsorted(self.query_starts[1:], token, side="right").astype(jnp.int32)

    def positions(self) -> Int[Array, "T"]:
        """The absolute position of each token; 0 at padding."""
        token = jnp.arange(self.tokens.shape[0], dtype=jnp.int32)
        row = self.rows()
        last = self.kv_lens.shape[0] - 1
        inside = jnp.minimum(row, last)
        position = self.kv_lens[inside] - self.query_starts[inside + 1] + token
        return jnp.where(row > last, 0, position)

    def indices(self) -> tuple[RaggedIndex, ...]:
        """What attention needs to know, for each cache group."""

        def of(table: Int[Array, "B pages"]) -> RaggedIndex:
            return RaggedIndex(table, self.query_starts, self.kv_lens, self.max_query_len)

        # Texts side by side without rows (compress/forward.py) have positions of their own.
        rows = self.query_starts.shape[0] - 1
        places = TokenPlaces.of(self.tokens.shape[0], of(self.page_tables[0])) if rows else None
        return tuple(replace(of(table), places=places) for table in self.page_tables)


def allocate_cache(
    config: ModelConfig, backend: Backend, *, num_pages: Sequence[int], page_size: int, dtype: DTypeLike
) -> KVCache:
    """An empty cache with `num_pages[g]` pages in group g."""
    return tuple(
        backend.allocate_cache(group, num_pages=pages, page_size=page_size, dtype=dtype)
        for group, pages in zip(config.cache_groups, num_pages, strict=True)
    )


def read_pages(cache: KVCache, ids: Sequence[Int[Array, "_"]]) -> KVCache:
    """Pages `ids[g]` of each group, in the backend's own form [L, n, ...]: to be kept, sent, or written elsewhere."""

    def read(group: PyTree, pages: Array) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[:, pages], group)

    return tuple(read(*each) for each in zip(cache, ids, strict=True))


def write_pages(cache: KVCache, ids: Sequence[Int[Array, "_"]], pages: KVCache) -> KVCache:
    """The cache with what `read_pages` gave written to pages `ids[g]`; ids past the end are left out."""

    def write(group: PyTree, where: Array, new: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf, page: leaf.at[:, where].set(page, mode="drop"), group, new)

    return tuple(write(*each) for each in zip(cache, ids, pages, strict=True))


def copy_pages(cache: KVCache, sources: tuple[Int[Array, "_"], ...], targets: tuple[Int[Array, "_"], ...]) -> KVCache:
    """The cache with page `targets[g][i]` a copy of `sources[g][i]`; targets past the end are left out."""
    return write_pages(cache, targets, read_pages(cache, sources))
