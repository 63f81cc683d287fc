"""A row's step, and the drawing of its tokens, built in the process that compiles them."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ..backends.aot import Case
from ..backends.base import Backend
from ..backends.hardware import chip as chip_of
from ..models.compress import rounded_as
from ..models.row_state import RowState
from ..models.sampling import draw
from ..sharding.presets import preset as layout_of
from ..sharding.step import ShardedModel
from ..sharding.step_case import step_case
from ..sharding.sweep.models import model_config


def step(
    *,
    model: str,
    preset: str,
    mesh: Mapping[str, int],
    chip: str,
    dtype: str,
    quantize: str | None,
    kv_dtype: str,
    rows: int,
    queries: int,
    context: int,
) -> Case:
    """A step of a model, as `distaff sweep plan` was given it, that takes the most likely tokens."""
    backend, held = _backend(chip), rounded_as(quantize, model_config(model, offline=True))
    sharded = ShardedModel(held.config, layout_of(preset, mesh), backend, jnp.dtype(dtype), held.roundings)
    return step_case(
        sharded,
        rows=rows,
        queries=queries,
        context=context,
        page=backend.page_size,
        kv_dtype=jnp.dtype(kv_dtype),
        greedy=True,
    )


def drawing(*, vocab_size: int, chip: str, rows: int, context: int) -> Case:
    """Drawing a token in each of so many rows, whatever they ask for."""
    state = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, RowState.empty(rows, context, vocab_size)))
    logits = jax.ShapeDtypeStruct((rows, vocab_size), jnp.float32)
    of_rows = jax.ShapeDtypeStruct((rows,), jnp.int32)
    options = _backend(chip).compiler_options
    return Case(draw, (logits, state, of_rows, of_rows), compiler_options=options)


def _backend(name: str) -> Backend:
    if chip_of(name).platform == "tpu":
        from ..backends.tpu.backend import TpuBackend

        return TpuBackend(generation=chip_of(name).name)
    from ..backends.gpu.backend import GpuBackend

    return GpuBackend(chip=chip_of(name).name)
