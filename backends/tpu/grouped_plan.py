"""The static shape of a grouped matmul, and which rows meet which matrix in which step of its grid."""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from ..errors import UnsupportedError
from .block_sizes import block_sizes

GENERATIONS = ("v4", "v5e", "v5p", "v6e", "tpu7x")
DTYPES = ("float32", "bfloat16")
ALIGNMENT = 16
"""Rows: pieces begin at multiples of the rows that share a tile of memory."""
_FEWEST_ROWS = 32
_LANES = 128
_SUBLANES = 8
_PIECE_COLUMNS = (1024, 768, 512, 256, _LANES)
_SHARE = 0.85  # of the VMEM that the kernel may take: the compiler needs some for itself


@dataclass(frozen=True)
class GroupedBlocks:
    """What is tuned per generation.

    Args:
        rows: most rows of a tile, and of a piece that meets a matrix at once.
        sums: most fp32 sums of a piece, which are its rows times its columns.
        depth: inputs that one run of the inner body contracts.
        lone_mib: most of a matrix in VMEM where there is only one tile of rows; more would keep the first step waiting.
        vmem_mib: what the kernel may take of a core's VMEM.
    """

    rows: int
    sums: int
    depth: int
    lone_mib: int
    vmem_mib: int

    @classmethod
    def of(cls, generation: str) -> "GroupedBlocks":
        return cls(**block_sizes("grouped", generation))


@dataclass(frozen=True)
class GroupedPlan:
    """One call's geometry: a grid of `column_tiles` x `steps`, a matrix's part [tile_columns, I] in VMEM at a time.

    Args:
        num_rows: R, a multiple of ALIGNMENT.
        num_groups: E.
        tile_rows: rows that are in VMEM together.
        piece_rows: of them, those that meet a matrix at once: few where groups are small, as a matrix is pushed into
            the matrix unit for each piece, however few its rows are.
        piece_columns: outputs of a piece.
        tile_columns: outputs whose weights are in VMEM together.
    """

    num_rows: int
    num_groups: int
    num_inputs: int
    num_outputs: int
    dtype: DTypeLike
    blocks: GroupedBlocks
    tile_rows: int
    piece_rows: int
    piece_columns: int
    tile_columns: int

    @classmethod
    def of(
        cls,
        *,
        num_rows: int,
        num_groups: int,
        num_inputs: int,
        num_outputs: int,
        dtype: DTypeLike,
        generation: str,
        blocks: GroupedBlocks | None = None,
    ) -> "GroupedPlan":
        """The plan with the widest part of a matrix that fits.

        Raises:
            UnsupportedError: a dtype or generation that the kernel does not have, or rows too wide for VMEM.
        """
        if generation not in GENERATIONS:
            raise UnsupportedError(
                f"TPU grouped matmul: generation {generation}, supported are {', '.join(GENERATIONS)}"
            )
        if jnp.dtype(dtype).name not in DTYPES:
            raise UnsupportedError(
                f"TPU grouped matmul: dtype {jnp.dtype(dtype).name}, supported are {', '.join(DTYPES)}"
            )
        blocks = blocks or GroupedBlocks.of(generation)
        rows = -(-num_rows // ALIGNMENT) * ALIGNMENT
        usual = -(-num_rows // num_groups) + ALIGNMENT - 1  # of a group that begins anywhere
        piece = max(_FEWEST_ROWS, 2 ** math.ceil(math.log2(usual)))
        plan = cls(
            num_rows=rows,
            num_groups=num_groups,
            num_inputs=num_inputs,
            num_outputs=num_outputs,
            dtype=jnp.dtype(dtype).name,
            blocks=blocks,
            tile_rows=min(blocks.rows, rows),
            piece_rows=min(piece, blocks.rows, rows),
            piece_columns=_LANES,
            tile_columns=_LANES,
        )._divided()
        while plan.vmem_bytes > plan.budget:
            if plan.tile_rows > _FEWEST_ROWS:
                half = -(-plan.tile_rows // 2 // ALIGNMENT) * ALIGNMENT
                plan = replace(plan, tile_rows=half, piece_rows=min(half, plan.piece_rows))
            elif plan.piece_columns > _LANES:
                plan = replace(plan, piece_columns=_LANES, tile_columns=_LANES)
            else:
                raise UnsupportedError(
                    f"TPU grouped matmul: rows of {num_inputs} numbers in {jnp.dtype(dtype).name}, supported is what "
                    f"fits {blocks.vmem_mib} MiB of VMEM: fewer inputs"
                )
        return plan._widened()

    def _divided(self) -> "GroupedPlan":
        """With pieces as wide as their sums allow, of the widths that leave the fewest columns over."""
        allowed = [columns for columns in _PIECE_COLUMNS if columns * self.piece_rows <= self.blocks.sums]
        best = min(allowed or _PIECE_COLUMNS[-1:], key=lambda columns: -self.num_outputs % columns)
        return replace(self, piece_columns=best, tile_columns=best)

    def _widened(self) -> "GroupedPlan":
        columns, widest = self.piece_columns, -(-self.num_outputs // self.piece_columns)

        def fits(count: int) -> bool:
            plan = replace(self, tile_columns=count * columns)
            lone = self.row_tiles == 1 and plan.matrix_bytes > self.blocks.lone_mib * 2**20
            return plan.vmem_bytes <= self.budget and not lone

        most = next((count for count in range(widest, 1, -1) if fits(count)), 1)
        tiles = -(-widest // most)
        return replace(self, tile_columns=-(-widest // tiles) * columns)

    @property
    def row_tiles(self) -> int:
        return -(-self.num_rows // self.tile_rows)

    @property
    def column_tiles(self) -> int:
        return -(-self.num_outputs // self.tile_columns)

    @property
    def steps(self) -> int:
        """Most pairs of a tile and a group that has rows in it."""
        return self.row_tiles + min(self.num_groups, self.num_rows) - 1

    @property
    def depth(self) -> int:
        """Inputs contracted at once; products of fp32 are several of bf16."""
        return self.blocks.depth // (4 if self.dtype == "float32" else 1)

    @property
    def inputs_first(self) -> bool:
        """Whether a matrix lies in memory as [I, O].

        XLA lays out what a program is given so that the fewest numbers fill up its tiles; a kernel that wants the
        other order has the whole stack copied in each step.
        """
        outputs, inputs = self.num_outputs, self.num_inputs
        return _tiled(inputs, _SUBLANES) * _tiled(outputs, _LANES) < _tiled(outputs, _SUBLANES) * _tiled(inputs, _LANES)

    @property
    def matrix_bytes(self) -> int:
        """Of a matrix's part in VMEM."""
        inputs = _tiled(self.num_inputs, ALIGNMENT if self.inputs_first else _LANES)
        return self.tile_columns * inputs * jnp.dtype(self.dtype).itemsize

    @property
    def vmem_bytes(self) -> int:
        """Two of each block, one of them on its way, and fp32 sums."""
        itemsize = jnp.dtype(self.dtype).itemsize
        rows = self.tile_rows * (_tiled(self.num_inputs, _LANES) + self.tile_columns) * itemsize
        return 2 * (self.matrix_bytes + rows) + 4 * self.piece_rows * self.piece_columns

    @property
    def budget(self) -> float:
        return _SHARE * self.blocks.vmem_mib * 2**20

    @property
    def scratch(self) -> list[Any]:
        return [pltpu.VMEM((self.piece_rows, self.piece_columns), jnp.float32)]


class Steps(NamedTuple):
    """What each step along the second axis of the grid works on: a group's matrix, a tile, and rows of the tile.

    Steps that are left over repeat the last one's matrix and tile, which are in VMEM already, for no rows.
    """

    group: Int[Array, "steps"]
    tile: Int[Array, "steps"]
    low: Int[Array, "steps"]
    high: Int[Array, "steps"]


def steps_of(plan: GroupedPlan, group_sizes: Int[Array, "E"]) -> Steps:
    """The steps in the order of the rows: each group's matrix is needed in consecutive ones, as is each tile."""
    rows = plan.tile_rows
    ends = jnp.cumsum(group_sizes.astype(jnp.int32))
    starts = ends - group_sizes
    tiles = jnp.where(group_sizes > 0, (ends - 1) // rows - starts // rows + 1, 0)
    before = jnp.cumsum(tiles) - tiles
    step = jnp.arange(plan.steps, dtype=jnp.int32)
    at = jnp.minimum(step, jnp.maximum(jnp.sum(tiles) - 1, 0))[:, None]
    chosen = (before <= at) & (at < before + tiles)  # one group of each step

    def of_step(values: Array) -> Array:
        return jnp.sum(jnp.where(chosen, values, 0), axis=1, dtype=jnp.int32)

    start, end = of_step(starts), of_step(ends)
    tile = of_step(starts // rows - before) + jnp.where(chosen.any(axis=1), at[:, 0], 0)
    live = step < jnp.sum(tiles)
    low, high = jnp.clip(start - tile * rows, 0, rows), jnp.clip(end - tile * rows, 0, rows)
    return Steps(of_step(jnp.arange(plan.num_groups)), tile, jnp.where(live, low, 0), jnp.where(live, high, 0))


def _tiled(size: int, tile: int) -> int:
    return -(-size // tile) * tile
