"""A whole step of a model, as a case for the compiler."""

import json
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..backends.aot import Case
from ..backends.base import Backend
from ..backends.kernel_work import KernelWork
from ..backends.token_scales import LARGEST
from ..backends.tpu.backend import TpuBackend
from ..backends.tpu.decode import decode_shape
from ..backends.tpu.decode_round import round_new_work
from ..backends.tpu.decode_work import decode_work
from ..backends.tpu.rounding import rounding_work
from ..models.checkpoints import shipped_configs
from ..models.compress import rounded_as
from ..models.config import MlpConfig, ModelConfig
from ..models.costs import Steps, work_of
from ..models.decoder import unflatten, weight_specs
from ..models.families import config_from_hf
from ..models.kv_cache import allocate_cache
from ..models.row_state import RowState
from ..models.step import Step, StepBatch
from ..sharding.parsing import parse_layout
from ..sharding.step import ShardedModel
from ..sharding.step_case import step_case


def abstract_step(
    config: ModelConfig,
    backend: Backend,
    *,
    rows: int,
    queries: int,
    context: int,
    page: int = 16,
    dtype: DTypeLike = jnp.bfloat16,
    kv_dtype: DTypeLike | None = None,
) -> tuple[Step, tuple[Any, ...]]:
    """A step and the shapes of its arguments.

    Args:
        rows: B; each of them has `queries` tokens in the step, its last ones of `context`. 1 is a decode step.
        page: positions of a page; the cache has as many pages as the rows fill.
        kv_dtype: of the cache; None: dtype.
    """
    groups = len(config.cache_groups)
    per_row = -(-context // page)
    weights = unflatten({s.path: jax.ShapeDtypeStruct(s.shape, s.dtype) for s in weight_specs(config, dtype).values()})

    def arguments(weights: Any) -> tuple[Any, ...]:
        tables = (jnp.zeros((rows, per_row), jnp.int32),) * groups
        lens = jnp.zeros(rows, jnp.int32)
        starts, steps = jnp.zeros(rows + 1, jnp.int32), jnp.int32(1)
        return (
            backend.prepare_params(weights),
            allocate_cache(
                config, backend, num_pages=[rows * per_row] * groups, page_size=page, dtype=kv_dtype or dtype
            ),
            jax.tree.map(jnp.asarray, RowState.empty(rows, context, config.vocab_size)),
            StepBatch(lens, starts, lens, tables, jnp.zeros(rows, bool), steps),
        )

    step = Step(config, backend, num_tokens=rows * queries, decode=queries == 1)
    return step, jax.eval_shape(arguments, weights)


def step(*, generation: str, model: str, batch: int, context: int, page: int) -> Case:
    """One decode step of a shipped configuration in bf16, all rows `context` long."""
    config = shipped_config(model)
    backend = TpuBackend(generation=generation)
    function, args = abstract_step(config, backend, rows=batch, queries=1, context=context, page=page)
    attention = config.layers[0].attention
    work = decode_work(
        [context] * batch,
        [1] * batch,
        num_heads=attention.num_heads,
        num_kv_heads=attention.num_kv_heads,
        head_dim=attention.head_dim,
        page_size=page,
        kv_dtype=jnp.bfloat16,
        generation=generation,
        table_width=-(-context // page),
    )
    return Case(
        function,
        args,
        donate=(1, 2),
        work={"decode_attention": work},
        compiler_options=backend.compiler_options,
    )


def layout_step(
    *,
    generation: str,
    model: str,
    layout: str,
    devices: int,
    batch: int,
    context: int,
    page: int = 128,
    quantize: str | None = None,
    kv_dtype: str = "bfloat16",
) -> Case:
    """One greedy decode step of a shipped configuration under a layout, in bf16 or with rounded weights and cache."""
    form = rounded_as(quantize, shipped_config(model))
    config, backend = form.config, TpuBackend(generation=generation)
    laid = parse_layout(layout, num_devices=devices)
    sharded = ShardedModel(config, laid, backend, jnp.dtype(jnp.bfloat16), form.roundings)
    held = jnp.dtype(kv_dtype)
    case = step_case(sharded, rows=batch, queries=1, context=context, page=page, kv_dtype=held, greedy=True)
    attention, parts = config.layers[0].attention, laid.parts("cache_heads")
    shape: dict[str, Any] = dict(
        num_heads=attention.num_heads // parts,
        num_kv_heads=attention.num_kv_heads // parts,
        head_dim=attention.head_dim,
        page_size=page,
        kv_dtype=held,
        generation=generation,
        table_width=-(-context // page),
        token_scales=held.name in LARGEST,
    )
    attend = decode_work([context] * batch, [1] * batch, **shape)

    def work(name: str) -> KernelWork | None:
        match name.split(".")[0]:
            case "decode_attention":
                return attend
            case "norm_rounded" | "rows_rounded":  # of which those of attention's output are narrower
                return rounding_work("norm", batch, config.embed_dim, generation)
            case "gate_rounded":
                mlp = config.layers[0].mlp
                assert isinstance(mlp, MlpConfig)
                return rounding_work("gate", batch, mlp.dim // laid.parts("mlp"), generation)
            case "new_rounded":
                return round_new_work(decode_shape(**shape), batch)
        return None

    return replace(case, work=work)


def shipped_config(model: str) -> ModelConfig:
    """A configuration that comes with Distaff."""
    return config_from_hf(json.loads(shipped_configs()[model].read_text()), source=model)


def step_bytes(model: str, batch: int, context: int) -> tuple[float, float]:
    """Bytes that a decode step in bf16 has to read: weights, and the keys and values of all rows."""
    config = shipped_config(model)
    once = Steps(steps=1, tokens=batch, drawn=batch, attended=batch * context, read=batch * context)
    both = work_of(config, once, weight_bytes=2, kv_bytes=2).bytes
    weights = work_of(config, once, weight_bytes=2, kv_bytes=0).bytes
    return weights, both - weights
