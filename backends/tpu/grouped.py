"""Grouped matmul on a TPU, for mixtures of experts: consecutive groups of rows, each times a matrix of its own."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from .grouped_kernel import grouped_kernel
from .grouped_plan import GroupedBlocks, GroupedPlan, steps_of


def grouped_matmul(
    x: Float[Array, "R I"],
    weight: Float[Array, "L E O I"],
    layer: Int[Array, ""],
    group_sizes: Int[Array, "E"],
    *,
    generation: str,
    blocks: GroupedBlocks | None = None,
    interpret: Any = False,
) -> Float[Array, "R O"]:
    """Multiplies consecutive groups of rows by a matrix each, of one layer of a stack, which is read where it lies.

    Matrices of empty groups are not read, the others once. Rows behind the last group come out arbitrary.

    Raises:
        UnsupportedError: something that the kernel does not have.
    """
    (num_rows, num_inputs), (num_groups, num_outputs) = x.shape, weight.shape[1:3]
    plan = GroupedPlan.of(
        num_rows=num_rows,
        num_groups=num_groups,
        num_inputs=num_inputs,
        num_outputs=num_outputs,
        dtype=x.dtype,
        generation=generation,
        blocks=blocks,
    )
    block: tuple[Any, ...] = (None, None, plan.tile_columns, num_inputs)
    if plan.inputs_first:
        weight, block = jnp.swapaxes(weight, 2, 3), (None, None, num_inputs, plan.tile_columns)
    x = jnp.pad(x, ((0, plan.num_rows - num_rows), (0, 0)))
    scalars = (jnp.reshape(layer, 1).astype(jnp.int32), *steps_of(plan, group_sizes))
    y = pl.pallas_call(
        partial(grouped_kernel, plan=plan),
        out_shape=pltpu.HBM((plan.num_rows, num_outputs), x.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(plan.column_tiles, plan.steps),
            in_specs=[
                pl.BlockSpec((plan.tile_rows, num_inputs), lambda o, at, layer, group, tile, *_: (tile[at], 0)),
                pl.BlockSpec(
                    block,
                    lambda o, at, layer, group, *_: (
                        (layer[0], group[at], 0, o) if plan.inputs_first else (layer[0], group[at], o, 0)
                    ),
                ),
            ],
            out_specs=pl.BlockSpec(
                (plan.tile_rows, plan.tile_columns), lambda o, at, layer, group, tile, *_: (tile[at], o)
            ),
            scratch_shapes=plan.scratch,
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"),
            vmem_limit_bytes=plan.blocks.vmem_mib << 20,
            disable_bounds_checks=True,
        ),
        interpret=interpret,
        name="grouped_matmul",
    )(*scalars, x, weight)
    return y[:num_rows]
