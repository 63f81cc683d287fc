"""How often each part of the walk over rows, tiles and chunks runs on given lengths."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import jax.numpy as jnp

from .cache import LANES
from .prefill_plan import TILE_ALIGNMENT, PrefillPlan


@dataclass(frozen=True)
class Row:
    """One row that the kernel computes: its first token, its queries, and all its positions, the queries' included."""

    begin: int
    queries: int
    length: int

    @property
    def own(self) -> int:
        """Position of the first query."""
        return self.length - self.queries


@dataclass(frozen=True)
class TileWork:
    """One tile: position of its first lane, first position needed, first chunk, and the chunk after the last."""

    row: Row
    position: int
    first: int
    low: int
    high: int

    @property
    def shared(self) -> bool:
        """Whether it begins among the tokens of the row before."""
        return self.position < self.row.own


def tiles_of(plan: PrefillPlan, rows: Sequence[Row]) -> Iterator[TileWork]:
    """The tiles of all rows in order, as Walk takes them."""
    queries, keys, window = plan.blocks.queries, plan.blocks.keys, plan.spec.window
    for row in rows:
        for token in range(row.begin // TILE_ALIGNMENT * TILE_ALIGNMENT, row.begin + row.queries, queries):
            position = row.own + token - row.begin
            first = 0 if window is None else max(max(position, row.own) - window + 1, 0)
            last = min(position + queries, row.length) if plan.causal else row.length
            yield TileWork(row, position, first, first // keys, -(-last // keys))


def masked(plan: PrefillPlan, tile: TileWork, chunk: int) -> bool:
    """Whether some query of the tile does not see some key of the chunk."""
    if plan.extra_mask:
        return True
    begin, end = chunk * plan.blocks.keys, (chunk + 1) * plan.blocks.keys - 1
    hidden = end > tile.position if plan.causal else end >= tile.row.length
    window = plan.spec.window
    return hidden or (window is not None and begin <= tile.position + plan.blocks.queries - 1 - window)


@dataclass(frozen=True)
class WalkWork:
    """Totals of one call.

    Args:
        tiles: of all rows.
        shared: those of them that begin among another row's tokens.
        chunks: of all tiles.
        masked: those of them with a mask.
        cleared: those without one that find the mask of another.
    """

    plan: PrefillPlan
    tiles: int
    shared: int
    chunks: int
    masked: int
    cleared: int

    @classmethod
    def of(cls, plan: PrefillPlan, tiles: Sequence[TileWork]) -> "WalkWork":
        # What scratch holds at first counts as a mask.
        masks = [True, *(masked(plan, tile, chunk) for tile in tiles for chunk in range(tile.low, tile.high))]
        cleared = sum(before and not here for before, here in pairwise(masks))
        shared = sum(tile.shared for tile in tiles)
        return cls(plan, len(tiles), shared, len(masks) - 1, sum(masks[1:]), cleared)

    @property
    def pieces(self) -> int:
        """Runs of the body: each piece begins one, and two more end the last pieces."""
        return self.chunks * self.plan.bodies + 2

    @property
    def counts(self) -> dict[str, int]:
        """What a test counts; tiles share their begin with another row group by group."""
        names = ("tiles", "chunks", "masked", "cleared", "pieces")
        return {**{name: getattr(self, name) for name in names}, "shared": self.shared * self.plan.bodies}

    @property
    def tile_bytes(self) -> int:
        """Bytes of queries, outputs and log-sum-exps."""
        plan, itemsize = self.plan, jnp.dtype(self.plan.dtype).itemsize
        tile = plan.num_heads * plan.blocks.queries * (plan.window + plan.out_width) * itemsize
        if plan.return_lse:
            tile += plan.num_heads * plan.blocks.queries * jnp.dtype(jnp.float32).itemsize
        return self.tiles * tile + self.shared * plan.num_heads * TILE_ALIGNMENT * plan.out_width * itemsize

    # For the static model: the walk is one loop over tiles, and one turn more behind the last.

    @property
    def tile_trips(self) -> int:
        return self.tiles + 1

    @property
    def live(self) -> float:
        """Fraction of those turns that have a tile."""
        return self.tiles / self.tile_trips

    @property
    def chunk_trips(self) -> float:
        """Chunks of a turn."""
        return (self.chunks + 1) / self.tile_trips

    @property
    def chunk_live(self) -> float:
        return self.chunks / (self.chunks + 1)

    @property
    def fetch_trips(self) -> float:
        """Chunks asked for at each chunk: one, but `buffers` at the very first."""
        return (self.chunks - 1 + self.plan.blocks.buffers) / self.chunks

    @property
    def laying(self) -> list[None]:
        """The loop that lays a chunk in whole registers, if there is one; the compiler knows its trips."""
        plan = self.plan
        return [None] if plan.whole and plan.lanes // LANES > plan.columns_at_once else []

    @property
    def piece_trips(self) -> float:
        """Pieces of a chunk."""
        return self.pieces / (self.chunks + 1)

    @property
    def finished(self) -> float:
        """Fraction of the pieces behind which a group of heads of a tile is finished."""
        return self.tiles * self.plan.bodies / self.pieces


def attention_flops(plan: PrefillPlan, rows: Sequence[Row]) -> int:
    """Of both products, for keys that are seen."""
    seen = 0
    for row in rows:
        for position in range(row.own, row.length):
            last = position + 1 if plan.causal else row.length
            first = 0 if plan.spec.window is None else max(position - plan.spec.window + 1, 0)
            seen += max(last - first, 0)
    return 4 * plan.num_heads * plan.head_dim * seen
