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
from ..backends.reference import ReferenceBackend, Row, TokenPlaces, row_scores, rows_of
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
        tokens = TokenPlaces.of(q.shape[0], index)
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


def write(
    cache: Float[Array, "L P run 2 K H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    layer: Int[Array, ""],
    index: RaggedIndex,
    tokens: TokenPlaces,
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
    tokens: TokenPlaces,
    spec: AttentionSpec,
    held: Share,
) -> tuple[Float[Array, "T N"], Float[Array, "T N"], Float[Array, "T N H"]]:
    """Of the keys that are here, for each query: the largest score, the sum of exp(score - largest), and the values
    weighted with those, in fp32."""
    num_tokens, num_heads, head_dim = q.shape
    longest = min(index.max_query_len or num_tokens, num_tokens)
    key_position = held.positions(index.page_table.shape[1])

    def of_row(row: Row) -> tuple[Array, Array, Array]:
        scores, values = row_scores(q, cache, layer, row, key_position, longest, spec)
        # A device may hold no visible key.
        most = jnp.maximum(scores.max(axis=-1), jnp.finfo(jnp.float32).min)
        weights = jnp.exp(scores - most[..., None])
        summed = jnp.einsum("KGQS,SKH->QKGH", weights, values.astype(jnp.float32), precision="highest")
        return jnp.moveaxis(most, -1, 0), jnp.moveaxis(weights.sum(axis=-1), -1, 0), summed

    most, total, summed = jax.lax.map(of_row, rows_of(index))
    place = tokens.row, jnp.minimum(tokens.offset, longest - 1)
    return (
        most[place].reshape(num_tokens, num_heads),
        total[place].reshape(num_tokens, num_heads),
        summed[place].reshape(num_tokens, num_heads, head_dim),
    )
