"""What a tile of attention is: its static part, its arguments, and the blocks of keys that it goes through."""

from dataclasses import dataclass

from .attention_layout import LANES, PageLayout
from .jit import Value

BLOCK = 128
"""Keys between two updates of a query's running maximum."""

CHUNKS = BLOCK // LANES


@dataclass(frozen=True)
class TileSpec:
    """What the code of a tile depends on; `groups` consecutive rows are the heads of one query position, and `in_bytes`
    says that the cache is multiplied as attention_bytes.py does."""

    layout: PageLayout
    groups: int
    scale: float
    window: int | None
    soft_cap: float | None
    in_bytes: bool = False


@dataclass(frozen=True)
class Tile:
    """Arguments of a tile's code, in this order.

    queries [M, key_width] (of `in_bytes` in a form of their own), out [M, value_width], tops
    [M] (running maxima, in units of log 2) and totals [M, LANES] are fp32 scratch of one work item. keys and values
    [CHUNKS] are the addresses of 16 positions each, and the next two those of as many that are fetched meanwhile. `row`
    is the tile's first of the M rows; row 0 stands `position` after the block's first key (before it, if negative).
    """

    queries: Value
    out: Value
    tops: Value
    totals: Value
    keys: Value
    values: Value
    later_keys: Value
    later_values: Value
    row: Value
    position: Value
