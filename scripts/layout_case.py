"""A step under a layout, built in the process that compiles it."""

import jax.numpy as jnp

from ..backends.aot import Case
from ..backends.compiler.topologies import parse_topology
from ..backends.tpu.backend import TpuBackend
from ..models.checkpoints import open_checkpoint
from ..models.families import config_from_hf
from ..sharding.parsing import parse_layout
from ..sharding.step import ShardedModel
from ..sharding.step_case import step_case


def build(
    *, model: str, layout: str, devices: int, topology: str, dtype: str, rows: int, queries: int, context: int
) -> Case:
    """The case of a step of a model at a path; `layout` as parse_layout reads it."""
    checkpoint = open_checkpoint(model)
    config = config_from_hf(checkpoint.hf_config, source=str(checkpoint.path))
    backend = TpuBackend(generation=parse_topology(topology).chip.name)
    sharded = ShardedModel(config, parse_layout(layout, num_devices=devices), backend, jnp.dtype(dtype))
    return step_case(sharded, rows=rows, queries=queries, context=context, page=backend.page_size)
