"""The copies between HBM and VMEM that the decode kernel starts and awaits."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .cache import tile_rows
from .decode_items import Item, Items, max_units, quotient, remainder, unit_rows
from .decode_shape import DecodeShape

Ref = Any

SLOTS = 4
"""Blocks in memory at once, and queries of rows, and new keys and values."""


UNROLLED = 16
"""Copies of pages in the body of a loop that only starts copies."""


def slot_of(number: Any) -> Any:
    return number & (SLOTS - 1)


@dataclass(frozen=True)
class Copies:
    """See decode_kernel.py for the memory. `emulate`: the kernel is interpreted."""

    shape: DecodeShape
    items: Items
    emulate: bool
    table_width: int
    layer: Ref
    table: Ref
    q: Ref
    new_kv: Ref
    output: Ref
    cache: Ref
    kv: Ref
    raw: Ref
    new: Ref
    out: Ref
    page_sems: Ref
    raw_sems: Ref
    new_sems: Ref
    back_sems: Ref
    out_sems: Ref
    token_scales: Ref | None = None
    scales: Ref | None = None
    scale_sems: Ref | None = None

    # Pages.

    def _page(self, item: Item, page: Any) -> Any:
        entry = item.row * self.table_width + quotient(item.start, self.shape.page) + page
        slot = slot_of(item.ring)
        source = self.cache.at[self.layer[0], self.table[entry]]
        return pltpu.make_async_copy(source, self.kv.at[slot, page], self.page_sems.at[slot])

    def fetch_pages(self, item: Item, parts: int) -> Callable[[], None]:
        """Asks for an item's pages. Each call of what it returns asks for one of `parts` parts of them.

        Vector stores and the start of a copy keep their order, so copies that shall cost no time stand between stores.
        Where the kernel drives the matrix units, pages so few that each would stand alone are left to the last call.
        """
        count = self.shape.block_pages
        late = self.shape.by_hand and count <= parts
        left, calls = iter(range(count)), iter(range(parts))

        def some() -> None:
            share = count * (next(calls) == parts - 1) if late else -(-count // parts)
            for page in islice(left, share):
                pl.when(page < item.pages)(partial(lambda page: self._page(item, page).start(), page))

        return some

    def fetch_all_pages(self, item: Item) -> None:
        """Asks for all of an item's pages at once."""
        group = min(UNROLLED, self.shape.block_pages)

        def fetch_group(number: jax.Array, _: None) -> None:
            for page in range(group):
                self._page(item, number * group + page).start()

        def fetch_one(page: jax.Array, _: None) -> None:
            self._page(item, page).start()

        groups = quotient(item.pages, group)
        lax.fori_loop(0, groups, fetch_group, None)
        lax.fori_loop(groups * group, item.pages, fetch_one, None)

    def await_pages(self, item: Item) -> None:
        """Waits for one, two, four, ... pages, as many as there are."""
        slot, size = slot_of(item.ring), 1
        while size <= self.shape.block_pages:

            def wait(size: int = size) -> None:
                some = self.kv.at[slot, pl.ds(0, size)]
                pltpu.make_async_copy(some, some, self.page_sems.at[slot]).wait()

            pl.when((item.pages & size) > 0)(wait)
            size *= 2

    # Scales of tokens, if there are any.

    def _for_scales(self, item: Item, body: Callable[[Any], None]) -> None:
        if self.token_scales is None or self.scales is None or self.scale_sems is None:
            return
        slot = slot_of(item.ring)
        first = item.row * self.table_width + quotient(item.start, self.shape.page)
        for page in range(self.shape.block_pages):
            wanted = page < item.pages
            source = self.token_scales.at[self.layer[0], self.table[jnp.where(wanted, first + page, 0)]]
            copy = pltpu.make_async_copy(source, self.scales.at[slot, page], self.scale_sems.at[slot])
            pl.when(wanted)(partial(body, copy))

    def fetch_scales(self, item: Item) -> None:
        self._for_scales(item, lambda copy: copy.start())

    def await_scales(self, item: Item) -> None:
        self._for_scales(item, lambda copy: copy.wait())

    # Queries, by the row's ordinal.

    def _queries(self, place: Any, ordinal: Any) -> Any:
        slot = slot_of(ordinal)
        return pltpu.make_async_copy(self.q.at[place], self.raw.at[slot], self.raw_sems.at[slot])

    def fetch_queries(self, wanted: jax.Array, ordinal: Any) -> None:
        row = self.items.rows[jnp.where(wanted, ordinal, 0)]
        pl.when(wanted)(lambda: self._queries(self.items.places[row], ordinal).start())

    def await_queries(self, item: Item) -> None:
        """Waits for the queries of the row that an item begins."""
        pl.when((item.first > 0) & (item.pages > 0))(lambda: self._queries(0, item.ordinal).wait())

    # New keys and values.

    def _new(self, item: Item) -> Any:
        slot = slot_of(item.ring)
        return pltpu.make_async_copy(self.new_kv.at[item.place], self.new.at[slot], self.new_sems.at[slot])

    def fetch_new(self, item: Item) -> None:
        pl.when(item.units > 0)(lambda: self._new(item).start())

    def await_new(self, item: Item) -> None:
        pl.when(item.units > 0)(lambda: self._new(item).wait())

    def _write_back(self, item: Item) -> list[tuple[jax.Array, Any]]:
        """Copies of the tiles that hold an item's new keys or values, each with whether it is wanted."""
        shape, unit, tile = self.shape, unit_rows(self.shape), tile_rows(self.shape.kv_dtype)
        slot, first = slot_of(item.ring), jnp.maximum(item.new & -unit, item.start)
        found = []
        for number in range(max_units(shape)):
            wanted, position = item.units > number, first + number * unit
            page, offset = quotient(position - item.start, shape.page), remainder(position, shape.page)
            entry = item.row * self.table_width + quotient(position, shape.page)
            target = self.table[jnp.where(wanted, entry, 0)]
            for half in (0, 1):
                rows = pl.ds(pl.multiple_of((half * shape.page + offset) & -tile, tile), tile)
                source, home = self.kv.at[slot, page, rows], self.cache.at[self.layer[0], target, rows]
                found.append((wanted, pltpu.make_async_copy(source, home, self.back_sems.at[slot])))
        return found

    def send_new(self, item: Item) -> None:
        for wanted, copy in self._write_back(item):
            pl.when(wanted)(copy.start)

    def await_sent(self, item: Item) -> None:
        for number in range(max_units(self.shape)):
            slot, tile = slot_of(item.ring), tile_rows(self.shape.kv_dtype)
            some = self.kv.at[slot, 0, pl.ds(0, tile)]
            copy = pltpu.make_async_copy(some, some, self.back_sems.at[slot])
            for _half in (0, 1):
                pl.when(item.units > number)(copy.wait)

    # Outputs, by the row's ordinal.

    def _output(self, place: Any, ordinal: Any) -> Any:
        slot = ordinal & 1
        return pltpu.make_async_copy(self.out.at[slot], self.output.at[place], self.out_sems.at[slot])

    def send_output(self, item: Item) -> None:
        """Sends a row's output after its last item."""
        pl.when(item.last > 0)(lambda: self._output(item.place, item.ordinal).start())

    def await_output(self, item: Item) -> None:
        """Waits until the row that an item begins may write its output where that of an earlier one was."""
        begins = (item.first > 0) & (item.pages > 0) & (item.ordinal >= 2)
        pl.when(begins)(lambda: self._output(0, item.ordinal).wait())

    def await_last_outputs(self, num_rows: jax.Array) -> None:
        for back in (2, 1):
            pl.when(num_rows >= back)(lambda back=back: self._output(0, num_rows - back).wait())
