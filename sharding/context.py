"""A KV cache whose positions are split over devices, and attention that merges what each of them sees.

Each page is cut into equal runs of positions, one for each device of the axis, so that pages mean the same everywhere
and any text is spread evenly. Every device attends with all queries to the keys that it holds; the partial softmaxes
are merged by their maxima and sums (Milakov and Gimelshein, Online normalizer calculation for softmax, 2018): per
layer one all-reduce of the maxima, and one of sums and weighted values.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ..backends.base import AttentionSpec, CacheGroup, PyTree, RaggedIndex
from ..backends.reference import ReferenceBackend
from .layout import Axes


@dataclass(frozen=True)
class ContextBackend(ReferenceBackend):
    """The reference backend for one of several devices that share each page; inside shard_map.

    Args:
        axes: mesh axes along which positions are split.
        shares: devices along them.
    """

    axes: Axes = ()
    shares: int = 1

    def allocate_cache(
        self, group: CacheGroup, *, num_pages: int, page_size: int, dtype: DTypeLike
    ) -> Float[Array, "L P page 2 K H"]:
        """This device's share of each page; `page_size` are the positions of all."""
        share = page_size // self.shares
        return ReferenceBackend.allocate_cache(self, group, num_pages=num_pages, page_size=share, dtype=dtype)

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
        held = Share(jax.lax.axis_index(self.axes), cache.shape[2], self.shares)
        tokens = Tokens.of(q, index)
        cache = write(cache, k, v, layer, index, tokens, held)
        most, total, summed = attend(q, cache, layer, index, tokens, spec, held)

        sink = None if sinks is None else sinks.astype(jnp.float32)
        most_of_all = jax.lax.pmax(most, self.axes)
        if sink is not None:
            most_of_all = jnp.maximum(most_of_all, sink)
        scale = jnp.exp(most - most_of_all)
        both = jnp.concatenate([summed * scale[..., None], (total * scale)[..., None]], axis=-1)
        both = jax.lax.psum(both, self.axes)
        total = both[..., -1] + (0 if sink is None else jnp.exp(sink - most_of_all))
        out = both[..., :-1] / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)[..., None]
        return jnp.where(tokens.padding[:, None, None], 0, out).astype(q.dtype), cache


@dataclass(frozen=True)
class Share:
    """Which positions a device holds: number `device` of `shares` runs of `run` positions in each page."""

    device: Int[Array, ""]
    run: int
    shares: int

    @property
    def page(self) -> int:
        return self.run * self.shares

    def positions(self, num_pages: int) -> Int[Array, "S"]:
        """Of what it holds of a text in so many pages."""
        page, inside = jnp.divmod(jnp.arange(num_pages * self.run), self.run)
        return page * self.page + self.device * self.run + inside

    def holds(self, position: Int[Array, "T"]) -> Array:
        return position % self.page // self.run == self.device


@dataclass(frozen=True)
class Tokens:
    """The row, the place in it and the position of each token; padding belongs to the last row."""

    row: Int[Array, "T"]
    offset: Int[Array, "T"]
    position: Int[Array, "T"]
    padding: Array

    @classmethod
    def of(cls, q: Float[Array, "T N H"], index: RaggedIndex) -> "Tokens":
        token = jnp.arange(q.shape[0])
        row = jnp.searchsorted(index.query_starts[1:], token, side="right")
        padding = row >= index.kv_lens.shape[0]
        row = jnp.minimum(row, index.kv_lens.shape[0] - 1)
        offset = token - index.query_starts[row]
        return cls(row, offset, index.kv_lens[row] - jnp.diff(index.query_starts)[row] + offset, padding)


def write(
    cache: Float[Array, "L P run 2 K H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    layer: Int[Array, ""],
    index: RaggedIndex,
    tokens: Tokens,
    held: Share,
) -> Float[Array, "L P run 2 K H"]:
    """The cache with the keys and values whose positions this device holds."""
    mine = held.holds(tokens.position) & ~tokens.padding
    page = jnp.where(mine, index.page_table[tokens.row, tokens.position // held.page], cache.shape[1])
    both = jnp.stack([k, v], axis=1).astype(cache.dtype)
    return cache.at[layer, page, tokens.position % held.run].set(both, mode="drop")


def attend(
    q: Float[Array, "T N H"],
    cache: Float[Array, "L P run 2 K H"],
    layer: Int[Array, ""],
    index: RaggedIndex,
    tokens: Tokens,
    spec: AttentionSpec,
    held: Share,
) -> tuple[Float[Array, "T N"], Float[Array, "T N"], Float[Array, "T N H"]]:
    """Of the keys that are here, for each query: the largest score, the sum of exp(score - largest), and the values
    weighted with those, in fp32."""
    num_tokens, num_heads, head_dim = q.shape
    groups = num_heads // cache.shape[4]
    longest = min(index.max_query_len or num_tokens, num_tokens)
    slot = jnp.arange(longest)
    key_position = held.positions(index.page_table.shape[1])

    def of_row(row: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array]:
        start, query_len, kv_len, pages = row
        queries = q[jnp.minimum(start + slot, num_tokens - 1)].reshape(longest, -1, groups, head_dim)
        gathered = cache[layer, pages].astype(q.dtype)
        keys, values = jnp.moveaxis(gathered.reshape(-1, *gathered.shape[2:]), 1, 0)
        written = key_position < kv_len
        query_position = (kv_len - query_len + slot)[:, None]
        visible = written & (key_position <= query_position)
        if spec.window is not None:
            visible &= key_position > query_position - spec.window
        scores = jnp.einsum("QKGH,SKH->QKGS", queries, keys, precision="highest", preferred_element_type=jnp.float32)
        scores *= spec.scale
        if spec.soft_cap is not None:
            scores = spec.soft_cap * jnp.tanh(scores / spec.soft_cap)
        scores = jnp.where(visible[:, None, None], scores, -jnp.inf)
        # A device may hold no visible key.
        most = jnp.maximum(scores.max(axis=-1), jnp.finfo(jnp.float32).min)
        weights = jnp.exp(scores - most[..., None])
        # Positions never written may hold anything, NaN included, and 0 * NaN is NaN.
        values = jnp.where(written[:, None, None], values, 0)
        summed = jnp.einsum("QKGS,SKH->QKGH", weights, values.astype(jnp.float32), precision="highest")
        return most, weights.sum(axis=-1), summed

    rows = (index.query_starts[:-1], jnp.diff(index.query_starts), index.kv_lens, index.page_table)
    most, total, summed = jax.lax.map(of_row, rows)
    place = tokens.row, jnp.minimum(tokens.offset, longest - 1)
    return (
        most[place].reshape(num_tokens, num_heads),
        total[place].reshape(num_tokens, num_heads),
        summed[place].reshape(num_tokens, num_heads, head_dim),
    )
