"""Attention of a step whose tokens are split over the devices that also share the positions of the KV cache.

Two rounds. In the first, the step's keys and values go round the ring of devices: each device attends with its own
queries to the keys that pass, and keeps those whose positions it holds (Liu et al., Ring Attention, 2023). In the
second, for texts of which earlier steps have cached a part, the queries and what they have seen go round instead, past
the cached positions of each device: a step has fewer queries than a long text has cached keys, and how many bytes go
round does not depend on the text.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..backends.base import AttentionSpec, PyTree, RaggedIndex
from ..backends.reference import TokenPlaces
from .layout import Axes
from .share import Share
from .softmax import Partial, attend

_TILE = 1024  # keys whose scores are held at once

type Read = Callable[[Int[Array, "n"]], tuple[Float[Array, "S K H"], Float[Array, "S K H"]]]
"""Keys and values that this device holds of some pages."""


@dataclass(frozen=True)
class Ring:
    """Devices along some mesh axes, each of which sends to the next one, the last to the first."""

    axes: Axes
    size: int

    def pass_on(self, x: PyTree) -> PyTree:
        pairs = [(here, (here + 1) % self.size) for here in range(self.size)]
        return jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, self.axes, pairs), x)

    @property
    def here(self) -> Int[Array, ""]:
        return jax.lax.axis_index(self.axes)


def block_of(places: TokenPlaces, block: Int[Array, ""], size: int) -> TokenPlaces:
    """Tokens `block * size : (block + 1) * size`."""

    def cut(x: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, block * size, size)

    return TokenPlaces(cut(places.row), cut(places.offset), cut(places.position), cut(places.padding))


def ring_attention(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    places: TokenPlaces,
    spec: AttentionSpec,
    ring: Ring,
    cache: PyTree,
    write: Callable[[PyTree, Array, Array, TokenPlaces], PyTree],
) -> tuple[Partial, PyTree]:
    """The first round: this device's queries to the keys of the step.

    Args:
        q, k, v: of this device's tokens.
        places: of the tokens of all devices.
        write: keeps of a block's keys and values what this device holds.
    """
    size, here = q.shape[0], ring.here
    mine = block_of(places, here, size)

    def seen(both: Array, theirs: TokenPlaces) -> Partial:
        return _attend_tokens(q, both[0], both[1], mine, theirs, spec)

    def hop(number: Int[Array, ""], carry: tuple[Array, Partial, PyTree]) -> tuple[Array, Partial, PyTree]:
        both, partial, cache = carry
        both = ring.pass_on(both)
        block = (here - number) % ring.size
        theirs = block_of(places, block, size)
        # Keys behind all of this device's queries are seen by none of them.
        new = jax.lax.cond(block < here, lambda: seen(both, theirs), lambda: Partial.nothing(q.shape))
        return both, partial.merge(new), write(cache, both[0], both[1], theirs)

    both = jnp.stack([k, v])
    carry = (both, seen(both, mine), write(cache, k, v, mine))
    _, partial, cache = jax.lax.fori_loop(1, ring.size, hop, carry)
    return partial, cache


def ring_past_cache(
    q: Float[Array, "T N H"],
    places: TokenPlaces,
    index: RaggedIndex,
    spec: AttentionSpec,
    ring: Ring,
    held: Share,
    read: Read,
) -> Partial:
    """The second round: this device's queries to the positions that earlier steps have cached on all devices."""
    size, here = q.shape[0], ring.here
    cached = index.kv_lens - jnp.diff(index.query_starts)

    def seen(q: Array, block: Int[Array, ""]) -> Partial:
        return _attend_pages(q, block_of(places, block, size), index.page_table, cached, spec, held, read)

    def hop(number: Int[Array, ""], carry: tuple[Array, Array]) -> tuple[Array, Array]:
        q, packed = ring.pass_on(carry)
        return q, _packed(_unpacked(packed).merge(seen(q, (here - number) % ring.size)))

    _, packed = jax.lax.fori_loop(1, ring.size, hop, (q, _packed(seen(q, here))))
    return _unpacked(ring.pass_on(packed))


def _packed(partial: Partial) -> Float[Array, "T N packed"]:
    return jnp.concatenate([partial.out, partial.lse[..., None]], axis=-1)


def _unpacked(packed: Float[Array, "T N packed"]) -> Partial:
    return Partial(packed[..., :-1], packed[..., -1])


def _visible(
    queries: TokenPlaces, row: Int[Array, "..."], position: Int[Array, "S"], spec: AttentionSpec
) -> Bool[Array, "T S"]:
    """Keys of a row at these positions that queries see."""
    here = queries.position[:, None]
    visible = (queries.row[:, None] == row) & ~queries.padding[:, None] & (position <= here)
    return visible if spec.window is None else visible & (position > here - spec.window)


def _attend_tokens(
    q: Float[Array, "T N H"],
    k: Float[Array, "S K H"],
    v: Float[Array, "S K H"],
    queries: TokenPlaces,
    keys: TokenPlaces,
    spec: AttentionSpec,
) -> Partial:
    num_keys = k.shape[0]
    tile = next(size for size in range(min(num_keys, _TILE), 0, -1) if num_keys % size == 0)

    def of_tile(number: Int[Array, ""] | int) -> Partial:
        own = block_of(keys, jnp.int32(number), tile)
        visible = _visible(queries, own.row, own.position, spec) & ~own.padding
        cut = [jax.lax.dynamic_slice_in_dim(x, number * tile, tile) for x in (k, v)]
        return attend(q, cut[0], cut[1], visible, spec)

    if tile == num_keys:
        return of_tile(0)
    return jax.lax.fori_loop(
        0, num_keys // tile, lambda number, partial: partial.merge(of_tile(number)), Partial.nothing(q.shape)
    )


def _attend_pages(
    q: Float[Array, "T N H"],
    queries: TokenPlaces,
    page_table: Int[Array, "B pages"],
    cached: Int[Array, "B"],
    spec: AttentionSpec,
    held: Share,
    read: Read,
) -> Partial:
    """Row after row, and of each as many pages at once as make a tile, up to the last one that is filled."""
    at_once = min(max(1, _TILE // held.run), page_table.shape[1])
    table = jnp.pad(page_table, ((0, 0), (0, -page_table.shape[1] % at_once)))

    def of_row(row: Int[Array, ""], partial: Partial) -> Partial:
        def of_tile(number: Int[Array, ""], partial: Partial) -> Partial:
            first = number * at_once
            keys, values = read(jax.lax.dynamic_slice(table, (row, first), (1, at_once))[0])
            position = held.positions(first, at_once)
            written = position < cached[row]
            visible = _visible(queries, row, position, spec) & written
            return partial.merge(attend(q, keys, values, visible, spec))

        tiles = -(-cached[row] // (held.page * at_once))
        any_here = ((queries.row == row) & ~queries.padding).any()
        return jax.lax.fori_loop(0, jnp.where(any_here, tiles, 0), of_tile, partial)

    return jax.lax.fori_loop(0, page_table.shape[0], of_row, Partial.nothing(q.shape))
