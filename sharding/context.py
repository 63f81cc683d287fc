"""A KV cache whose positions are split over devices, on any backend whose pages can be shared.

In steps whose tokens are split as well, attention goes round a ring (ring.py). In the others, decoding above all, every
device attends with all queries to the positions that it holds, and what they have seen is merged: per layer one
all-reduce of the largest scores, and one of weights and weighted values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ..backends.base import AttentionSpec, CacheGroup, Capabilities, PyTree, RaggedIndex
from ..backends.reference import ReferenceBackend, TokenPlaces
from ..backends.shared_pages import ReferencePages, SharedPages
from .layout import Axes
from .ring import Ring, ring_attention, ring_past_cache
from .share import Share
from .softmax import Partial, attend
from .wrapped import Wrapped


@dataclass(frozen=True)
class PlainPages(Wrapped):
    """A chip whose kernels read pages whole, with pages in the reference's form, which can be shared: attention goes
    through XLA, everything else is the chip's."""

    @property
    def capabilities(self) -> Capabilities:
        return replace(self.inner.capabilities, batch_invariant=False)

    @property
    def kernels(self) -> Mapping[str, str]:
        return {**self.inner.kernels, "ragged_attention": "jax.numpy, over pages that devices share"}

    def check(
        self,
        groups: Sequence[CacheGroup],
        *,
        dtype: DTypeLike,
        kv_dtype: DTypeLike,
        page_size: int,
        table_entries: int = 0,
    ) -> None:
        # Of the chip's own pages, since no kernel sees these, nor the table.
        self.inner.check(groups, dtype=dtype, kv_dtype=kv_dtype, page_size=self.inner.page_size)

    def allocate_cache(self, group: CacheGroup, *, num_pages: int, page_size: int, dtype: DTypeLike) -> PyTree:
        return ReferenceBackend().allocate_cache(group, num_pages=num_pages, page_size=page_size, dtype=dtype)


@dataclass(frozen=True)
class ContextBackend(Wrapped):
    """One of several devices that share each page; inside shard_map.

    Args:
        axes: mesh axes along which positions are split.
        shares: devices along them.
        split: whether the tokens of this step are split along them too.
        pages: the inner backend's.
    """

    axes: Axes = ()
    shares: int = 1
    split: bool = False
    pages: SharedPages = ReferencePages()

    def allocate_cache(self, group: CacheGroup, *, num_pages: int, page_size: int, dtype: DTypeLike) -> PyTree:
        """This device's share of each page; `page_size` are the positions of all."""
        share = page_size // self.shares
        return self.inner.allocate_cache(group, num_pages=num_pages, page_size=share, dtype=dtype)

    def ragged_attention(
        self,
        q: Float[Array, "T N H"],
        k: Float[Array, "T K H"],
        v: Float[Array, "T K H"],
        cache: PyTree,
        layer: Int[Array, ""],
        index: RaggedIndex,
        spec: AttentionSpec,
        sinks: Float[Array, "N"] | None = None,
    ) -> tuple[Float[Array, "T N H"], PyTree]:
        """As Backend.ragged_attention; not as its primitive, whose lowering knows no mesh axes."""
        index = index.without_mask(f"{self.name} under the layout sequence")
        held = Share(jax.lax.axis_index(self.axes), self.pages.page_size(cache), self.shares)
        size = q.shape[0]
        places = TokenPlaces.of(size * self.shares if self.split else size, index)

        def write(cache: PyTree, k: Array, v: Array, places: TokenPlaces) -> PyTree:
            mine = held.holds(places.position) & ~places.padding
            # The last number of all: no cache has as many pages.
            page = jnp.where(mine, index.page_table[places.row, places.position // held.page], jnp.iinfo(jnp.int32).max)
            return self.pages.write(cache, k, v, layer, page, places.position % held.run)

        if self.split:
            ring = Ring(self.axes, self.shares)
            partial, cache = ring_attention(q, k, v, places, spec, ring, cache, write)
            lens = jnp.diff(index.query_starts)
            later = ((lens > 0) & (index.kv_lens > lens)).any()
            own = ring.here

            def past_cache() -> Partial:
                def read(pages: Array) -> tuple[Array, Array]:
                    return self.pages.read(cache, layer, pages, k.shape[1], k.shape[2])

                return partial.merge(ring_past_cache(q, places, index, spec, ring, held, read))

            partial = jax.lax.cond(later, past_cache, lambda: partial)
            padding = jax.lax.dynamic_slice_in_dim(places.padding, own * size, size)
        else:
            cache = write(cache, k, v, places)
            partial, cache = self._own_positions(q, k.shape[1], cache, layer, index, places, spec, held)
            partial, padding = partial.merged(self.axes), places.padding
        return jnp.where(padding[:, None, None], 0, partial.finish(sinks)).astype(q.dtype), cache

    def _own_positions(
        self,
        q: Float[Array, "T N H"],
        num_kv_heads: int,
        cache: PyTree,
        layer: Int[Array, ""],
        index: RaggedIndex,
        places: TokenPlaces,
        spec: AttentionSpec,
        held: Share,
    ) -> tuple[Partial, PyTree]:
        """All queries to the positions that are here."""
        num_tokens, num_heads, head_dim = q.shape
        num_rows = index.kv_lens.shape[0]
        longest = min(index.max_query_len or num_tokens, num_tokens)
        # A window of whole pages has the same number of positions of every device, whichever query it ends at.
        if longest == 1 and num_tokens == num_rows and (spec.window is None or spec.window % held.page == 0):
            held_lens = jnp.where(jnp.diff(index.query_starts) > 0, held.before(index.kv_lens), 0)
            own = replace(index, kv_lens=held_lens, places=None)
            window = None if spec.window is None else spec.window // self.shares
            found = self.pages.attend_last(q, cache, layer, own, replace(spec, window=window), num_kv_heads)
            if found is not None:
                out, lse, cache = found
                return Partial.of_kernel(out, lse), cache
        position = held.positions(0, index.page_table.shape[1])
        slot = jnp.arange(longest)

        def of_row(row: tuple[Array, Array, Array, Array]) -> Partial:
            start, query_len, kv_len, pages = row
            keys, values = self.pages.read(cache, layer, pages, num_kv_heads, head_dim)
            here = (kv_len - query_len + slot)[:, None]
            visible = (position <= here) & (position < kv_len)
            if spec.window is not None:
                visible &= position > here - spec.window
            return attend(q[jnp.minimum(start + slot, num_tokens - 1)], keys, values, visible, spec)

        rows = (index.query_starts[:-1], jnp.diff(index.query_starts), index.kv_lens, index.page_table)
        found = jax.lax.map(of_row, rows)
        place = places.row, jnp.minimum(places.offset, longest - 1)
        return Partial(
            found.out[place].reshape(num_tokens, num_heads, head_dim), found.lse[place].reshape(num_tokens, num_heads)
        ), cache
