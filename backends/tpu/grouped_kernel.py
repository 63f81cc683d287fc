"""The inner body of a grouped matmul: rows of one group in a tile, times a part of the group's matrix."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from .grouped_plan import ALIGNMENT, GroupedPlan

_BOTH_LAST = (((1,), (1,)), ((), ()))
_PLAIN = (((1,), (0,)), ((), ()))


def grouped_kernel(
    layer: Any,
    group: Any,
    tile: Any,
    low: Any,
    high: Any,
    x: Any,
    weight: Any,
    out: Any,
    sums: Any,
    *,
    plan: GroupedPlan,
) -> None:
    """One step of the grid.

    Args:
        low, high: for each step, the rows of its tile that are the group's, in SMEM.
        x: the tile's rows [tile_rows, I] in VMEM; rows of other groups, and any numbers behind the last row.
        weight: [tile_columns, I] in VMEM, or [I, tile_columns].
        out: [tile_rows, tile_columns] in VMEM; keeps what the steps before this one wrote of the same tile.
        sums: fp32 [piece_rows, columns], where a row is contracted in several parts.
    """
    first, last = low[pl.program_id(1)], high[pl.program_id(1)]
    begin = first // ALIGNMENT * ALIGNMENT
    columns = plan.piece_columns

    def of_piece(number: Any, carry: Any) -> Any:
        top = jnp.minimum(begin + number * plan.piece_rows, plan.tile_rows - plan.piece_rows)
        rows = pl.ds(pl.multiple_of(top, ALIGNMENT), plan.piece_rows)
        row = top + jax.lax.broadcasted_iota(jnp.int32, (plan.piece_rows, columns), 0)
        ours = (first <= row) & (row < last)

        def of_columns(at: Any, carry: Any) -> Any:
            lanes = pl.ds(pl.multiple_of(at * columns, columns), columns)
            product = _product(plan, x, weight, sums, rows, lanes)
            out[rows, lanes] = jnp.where(ours, product, out[rows, lanes].astype(jnp.float32)).astype(out.dtype)
            return carry

        return jax.lax.fori_loop(0, plan.tile_columns // columns, of_columns, carry)

    jax.lax.fori_loop(0, pl.cdiv(last - begin, plan.piece_rows), of_piece, 0)


def _product(plan: GroupedPlan, x: Any, weight: Any, sums: Any, rows: Any, lanes: Any) -> jax.Array:
    """fp32 [piece_rows, columns]; all inputs at once, or first those that are left over, then `depth` at a time."""

    def product(inputs: Any) -> jax.Array:
        if plan.inputs_first:
            return _dot(x[rows, inputs], weight[inputs, lanes], _PLAIN)
        return _dot(x[rows, inputs], weight[lanes, inputs], _BOTH_LAST)

    parts, rest = divmod(plan.num_inputs, plan.depth)
    if parts == 0 or (parts == 1 and rest == 0):
        return product(pl.ds(0, plan.num_inputs))
    sums[...] = product(pl.ds(parts * plan.depth, rest) if rest else pl.ds(0, plan.depth))

    def of_part(part: Any, carry: Any) -> Any:
        inputs = pl.ds(pl.multiple_of(part * plan.depth, plan.depth), plan.depth)
        sums[...] += product(inputs)
        return carry

    jax.lax.fori_loop(0 if rest else 1, parts, of_part, 0)
    return sums[...]


def _dot(a: jax.Array, b: jax.Array, dimensions: Any) -> jax.Array:
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)
