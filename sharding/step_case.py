"""A step under a layout, as a case for the compiler of devices that are not attached."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from jax.typing import DTypeLike

from ..backends.aot import Case
from ..backends.base import PyTree
from ..models.decoder import unflatten
from ..models.row_state import RowState
from ..models.step import Step, StepBatch
from .arrange import abstract
from .step import ShardedModel


def step_case(
    model: ShardedModel,
    *,
    rows: int,
    queries: int,
    context: int,
    page: int,
    kv_dtype: DTypeLike | None = None,
    greedy: bool = False,
) -> Case:
    """One step and the shapes of its arguments, on the devices of the layout.

    Args:
        model: with the backend of one device.
        rows: of one replica; each of them has `queries` tokens in the step, its last ones of `context`. 1 is a decode
            step.
        page: positions of a page; the cache has as many pages as the rows fill.
        kv_dtype: of the cache; None: that of the weights.
        greedy: as Step has it.
    """
    layout, groups = model.layout, model.config.cache_groups
    sizes = dict(layout.mesh) or {"data": 1}
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    weights = unflatten(abstract(model.leaves))
    per_row = -(-context // page)
    cache = tuple(
        jax.eval_shape(
            model.allocate(mesh, group, num_pages=rows * per_row, page_size=page, dtype=kv_dtype or model.dtype)
        )
        for group in groups
    )
    state = jax.tree.map(jnp.asarray, RowState.empty(rows, context, model.config.vocab_size))
    whole: Any = jax.ShapeDtypeStruct
    batch = StepBatch(
        whole((rows,), jnp.int32),
        whole((rows + 1,), jnp.int32),
        whole((rows,), jnp.int32),
        (whole((rows, per_row), jnp.int32),) * len(groups),
        whole((rows,), jnp.bool_),
        whole((), jnp.int32),
    )
    step = Step(model.config, model.backend, num_tokens=rows * queries, decode=queries == 1, greedy=greedy)
    specs = model.step_specs(batch)
    arguments = (
        jax.eval_shape(model.prepare(mesh), weights),
        cache,
        _of_replicas(specs[2], state, layout.replicas),
        _of_replicas(specs[3], batch, layout.replicas),
    )
    return Case(
        model.step(step, None, batch),
        arguments,
        donate=(1, 2),
        mesh_axes=sizes,
        in_specs=specs,
        compiler_options=model.backend.compiler_options,
    )


def _of_replicas(specs: PyTree, tree: PyTree, replicas: int) -> PyTree:
    """Shapes of all replicas together, from those of one."""

    def widen(spec: PartitionSpec, part: PyTree) -> PyTree:
        times = replicas if len(spec) else 1

        def leaf(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((x.shape[0] * times, *x.shape[1:]) if x.shape else (), x.dtype)

        return jax.tree.map(leaf, part)

    return jax.tree.map(widen, specs, tree, is_leaf=lambda node: isinstance(node, PartitionSpec))
