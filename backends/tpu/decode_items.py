"""The sequence of items that the decode kernel walks: one per block of pages of each row that it handles."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .cache import tile_rows
from .decode_shape import DecodeShape

Ref = Any

RING = 8
"""Items that are remembered."""

_LISTED = 4
"""Rows that the loop which lists them takes at once: each alone would wait for its own numbers."""

FIELDS = 16
"""Words of an item."""


# Divisors are powers of two, which scalar units do not know unless they are told.


def quotient(x: Any, divisor: int) -> Any:
    return x >> (divisor.bit_length() - 1)


def remainder(x: Any, divisor: int) -> Any:
    return x & (divisor - 1)


def quotient_up(x: Any, divisor: int) -> Any:
    return quotient(x + (divisor - 1), divisor)


@dataclass(frozen=True)
class Item:
    """One block of a row, all in scalars.

    Args:
        row, place: of the batch; where its queries, new keys and output lie in their arrays.
        length, queries: positions of the row, and how many of them are new.
        start: the block's first position.
        pages: how many of its pages exist; 0 for what is not an item.
        first, last: whether it is the row's first block, its last one (0 or 1).
        units: pieces of the block that hold new positions and are written back.
        ordinal: of the row among those that the kernel handles.
        ring: the place among those remembered.
    """

    row: Any
    place: Any
    length: Any
    queries: Any
    start: Any
    pages: Any
    first: Any
    last: Any
    units: Any
    ordinal: Any
    ring: Any

    @property
    def new(self) -> Any:
        """The row's first new position."""
        return self.length - self.queries


_STORED = ("row", "place", "length", "queries", "start", "pages", "first", "last", "units", "ordinal")


def unit_rows(shape: DecodeShape) -> int:
    """Positions that are written back together: an aligned tile, or a page if that is smaller."""
    return min(tile_rows(shape.kv_dtype), shape.page)


def max_units(shape: DecodeShape) -> int:
    """Units that the new positions of a row can touch."""
    return 1 if shape.max_queries == 1 else 2 + (shape.max_queries - 2) // unit_rows(shape)


def listing_turns(num_rows: int) -> int:
    """Turns of the loop that lists the rows; those left over are listed behind it."""
    return num_rows // _LISTED


@dataclass(frozen=True)
class Items:
    """Makes items one after the other and remembers some.

    Args:
        kv_lens, q_lens, places: scalars of each row.
        rows, ring: scalar memory of B and of RING * FIELDS words.
    """

    shape: DecodeShape
    window: int | None
    kv_lens: Ref
    q_lens: Ref
    places: Ref
    rows: Ref
    ring: Ref

    def start(self) -> tuple[jax.Array, jax.Array]:
        """Lists the rows to handle; returns how many they are and how many items they have."""
        for number in range(RING):
            self._remember(Item(0, 0, 0, 0, 0, 0, 1, 0, 0, 0, number))

        def add(row: jax.Array | int, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            num_rows, num_items = found
            length, queries = self.kv_lens[row], self.q_lens[row]
            most = self.shape.max_queries
            few = queries == 1 if most == 1 else (queries >= 1) & (queries <= most)  # a test less for each row
            seen = length - self._begin(length, queries)
            ours = few & (seen > self.shape.over)
            if self.shape.most is not None:
                ours &= seen <= self.shape.most
            self.rows[num_rows] = row
            blocks = quotient_up(seen, self.shape.block)
            return num_rows + ours.astype(jnp.int32), num_items + jnp.where(ours, blocks, 0)

        def add_some(number: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            for row in range(_LISTED):
                found = add(number * _LISTED + row, found)
            return found

        found, groups = (jnp.int32(0), jnp.int32(0)), listing_turns(self.q_lens.shape[0])
        if groups:
            found = lax.fori_loop(0, groups, add_some, found)
        for row in range(groups * _LISTED, self.q_lens.shape[0]):
            found = add(row, found)
        return found

    def _begin(self, length: jax.Array, queries: jax.Array) -> jax.Array | int:
        """The first position of the first page that a query of the row sees."""
        if self.window is None:
            return 0
        return jnp.maximum(length - queries - self.window + 1, 0) & -self.shape.page

    def plan(
        self, t: jax.Array | int, num_items: jax.Array, num_rows: jax.Array, place: tuple[jax.Array, jax.Array]
    ) -> tuple[Item, tuple[jax.Array, jax.Array]]:
        """Item t, which is at `place`: block number of a listed row. Also returns the place of the item after it."""
        shape, unit = self.shape, unit_rows(self.shape)
        ordinal, block = place
        exists = t < num_items
        row = jnp.where(exists, self.rows[jnp.clip(ordinal, 0, jnp.maximum(num_rows - 1, 0))], 0)
        length, queries = self.kv_lens[row], self.q_lens[row]
        start = self._begin(length, queries) + block * shape.block
        ends = start + shape.block >= length
        last = (ends & exists).astype(jnp.int32)
        pages = jnp.minimum(quotient_up(length - start, shape.page), shape.block_pages)
        lowest = jnp.maximum(quotient(length - queries, unit), quotient(start, unit))
        highest = jnp.minimum(quotient(length - 1, unit), quotient(start + shape.block, unit) - 1)
        made = Item(
            row=row,
            place=self.places[row],
            length=length,
            queries=queries,
            start=start,
            pages=jnp.where(exists, pages, 0),
            first=((block == 0) | ~exists).astype(jnp.int32),
            last=last,
            units=jnp.where(exists, jnp.maximum(highest - lowest + 1, 0), 0),
            ordinal=ordinal,
            ring=t & (RING - 1),
        )
        self._remember(made)
        return made, (ordinal + last, jnp.where(ends, 0, block + 1))

    def _remember(self, item: Item) -> None:
        for field, name in enumerate(_STORED):
            self.ring[item.ring * FIELDS + field] = jnp.asarray(getattr(item, name), jnp.int32)

    def get(self, t: jax.Array) -> Item:
        """A remembered item; before the first one: nothing, with 0 pages."""
        ring = t & (RING - 1)
        stored = {name: self.ring[ring * FIELDS + field] for field, name in enumerate(_STORED)}
        return Item(**stored, ring=ring)
