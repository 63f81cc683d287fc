"""A row's step, built in the process that compiles it."""

from collections.abc import Mapping

import jax.numpy as jnp

from ..backends.aot import Case
from ..backends.base import Backend
from ..backends.hardware import chip as chip_of
from ..sharding.presets import preset as layout_of
from ..sharding.step import ShardedModel
from ..sharding.step_case import step_case
from ..sharding.sweep.models import model_config


def build(
    *,
    model: str,
    preset: str,
    mesh: Mapping[str, int],
    chip: str,
    dtype: str,
    kv_dtype: str,
    rows: int,
    queries: int,
    context: int,
) -> Case:
    """The case of a step of a model, as `distaff sweep plan` was given it."""
    backend = _backend(chip)
    sharded = ShardedModel(model_config(model, offline=True), layout_of(preset, mesh), backend, jnp.dtype(dtype))
    return step_case(
        sharded,
        rows=rows,
        queries=queries,
        context=max(context, queries),
        page=backend.page_size,
        kv_dtype=jnp.dtype(kv_dtype),
    )


def _backend(name: str) -> Backend:
    if chip_of(name).platform == "tpu":
        from ..backends.tpu.backend import TpuBackend

        return TpuBackend(generation=chip_of(name).name)
    from ..backends.gpu.backend import GpuBackend

    return GpuBackend(chip=chip_of(name).name)
