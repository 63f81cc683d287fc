"""What the kernels of ragged paged attention are compiled for, and what the threads of a call share."""

from dataclasses import dataclass

from .attention_layout import PageLayout, item_bytes
from .attention_shape import TileSpec
from .jit import I32, I64, POINTER, Code, Value

_ITEM_ROWS = 48
"""Queries x heads of a work item: enough to share the keys it streams, few enough to keep both cores busy."""

CONTEXT_BYTES = 120


class Slot:
    """Where things stand in the context that all threads of a call share: offsets of 8 bytes each."""

    Q, K, V, OUT, TABLE, STARTS, LENS, SINKS = range(0, 64, 8)
    LAYER, WIDTH, NUM_ROWS, BLOCKS, NUM_ITEMS, GRAIN, SPAN = range(64, CONTEXT_BYTES, 8)


@dataclass(frozen=True)
class KernelSpec:
    """What one kernel is compiled for. `dtype` is that of queries, new keys and values, and the output."""

    num_kv_heads: int
    dtype: str
    sinks: bool
    tile: TileSpec

    @property
    def layout(self) -> PageLayout:
        return self.tile.layout

    @property
    def item_tokens(self) -> int:
        """Queries of one work item, which attends with all the query heads of one kv head."""
        return max(1, _ITEM_ROWS // self.tile.groups)

    @property
    def head_bytes(self) -> int:
        return self.layout.head_dim * item_bytes(self.dtype)


def index(code: Code, array: Value, i: Value) -> Value:
    """Element i of an int32 array."""
    return code.sext(code.read(I32, array, code.times(i, 4), align=4), I64)


def address(
    code: Code, spec: KernelSpec, context: Value, row: Value, head: Value, position: Value
) -> tuple[Value, Value]:
    """Where a position's first lane is among the keys of its page, and among the values."""
    layout = spec.layout
    entry = code.plus(code.times(row, code.read(I64, context, Slot.WIDTH)), code.sdiv(position, code.i64(layout.page)))
    page = index(code, code.read(POINTER, context, Slot.TABLE), entry)
    slab = code.plus(code.times(page, spec.num_kv_heads), head)
    start = code.at(code.read(POINTER, context, Slot.LAYER), code.times(slab, layout.elements * layout.item_bytes))
    offset = code.srem(position, code.i64(layout.page))
    lane = code.times(code.sdiv(offset, code.i64(layout.pair)), layout.value_stride)
    return code.at(start, code.times(offset, 4)), code.at(start, layout.key_elements * layout.item_bytes, lane)
