"""What one call of the grouped matmul does for given groups, for the static cost model."""

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
from jax.typing import DTypeLike

from ..kernel_work import KernelWork
from .grouped_plan import ALIGNMENT, GroupedBlocks, GroupedPlan


def grouped_work(
    group_sizes: Sequence[int],
    *,
    num_rows: int,
    num_inputs: int,
    num_outputs: int,
    generation: str,
    dtype: DTypeLike = "bfloat16",
    blocks: GroupedBlocks | None = None,
) -> KernelWork:
    """The work of grouped_matmul for groups of these sizes; arguments as there."""
    plan = GroupedPlan.of(
        num_rows=num_rows,
        num_groups=len(group_sizes),
        num_inputs=num_inputs,
        num_outputs=num_outputs,
        dtype=dtype,
        generation=generation,
        blocks=blocks,
    )
    shares = list(_shares(plan, group_sizes))
    pieces = sum(-(-(end - begin // ALIGNMENT * ALIGNMENT) // plan.piece_rows) for _, begin, end in shares)
    tiles = len({tile for tile, _, _ in shares})
    itemsize = jnp.dtype(dtype).itemsize
    matrices = sum(size > 0 for size in group_sizes) * num_inputs * num_outputs
    # A lone tile of rows stays; several come again for each part of the matrices.
    rows = plan.num_rows * num_inputs * (plan.column_tiles if plan.row_tiles > 1 else 1)
    # Loops of pieces, columns and parts inside the grid's; those of one turn are none.
    parts, rest = divmod(num_inputs, plan.depth)
    loops = [plan.tile_columns // plan.piece_columns, parts if rest else parts - 1]
    inner = [float(trips) for trips in loops if trips > 1]
    return KernelWork(
        trips=dict(enumerate([pieces / plan.steps, *inner], start=1)),
        counts={"products": pieces * plan.column_tiles * (plan.tile_columns // plan.piece_columns)},
        hbm_bytes=itemsize * (matrices + rows + min(tiles * plan.tile_rows, plan.num_rows) * num_outputs),
        flops=2 * sum(group_sizes) * num_inputs * num_outputs,
    )


def _shares(plan: GroupedPlan, group_sizes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Each pair of a tile and a group that has rows in it: the tile, and which of its rows."""
    start = 0
    for size in group_sizes:
        for tile in range(start // plan.tile_rows, -(-(start + size) // plan.tile_rows) if size else 0):
            top = tile * plan.tile_rows
            yield tile, max(start - top, 0), min(start + size - top, plan.tile_rows)
        start += size
