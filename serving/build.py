"""Engines over models: what they run on, and how large everything is."""

from collections.abc import Callable
from dataclasses import replace

import jax.numpy as jnp

from ..backends.base import Backend
from ..backends.errors import InvalidParameterError
from ..models.config import ModelConfig
from ..models.decoder import Weights
from ..models.expert_load import num_experts
from ..models.tokenizer import Tokenizer
from ..sharding.backend import ShardedBackend
from .buckets import plan_buckets
from .cache_size import cache_pages
from .engine import Engine
from .engine_config import EngineConfig
from .host_device import hosted
from .host_link import Link
from .metrics import Metrics
from .one_program import OneProgram
from .output import Hidden
from .programs import Programs
from .replica_device import SharedDevice
from .replicated import ReplicatedPrograms
from .runner import Device

_FIXED_CHUNK = 64
"""Where prompts are cut on backends whose numbers depend on the shape of a step, to make them repeat."""


def build_engine(
    config: ModelConfig,
    weights: Weights,
    backend: Backend,
    engine_config: EngineConfig,
    *,
    dtype: str = "float32",
    kv_dtype: str | None = None,
    eos_ids: frozenset[int] = frozenset(),
    tokenizer: Tokenizer | None = None,
    hidden: Hidden | None = None,
    metrics: Metrics | None = None,
    on_compile: Callable[[int], None] = lambda number: None,
    link: Link | None = None,
    on_device: Callable[[Device], None] = lambda device: None,
) -> Engine:
    """An engine over a model on one device.

    Args:
        weights: in the checkpoint's form, consumed.
        dtype, kv_dtype: of activations, and of the cache; None: the same.
        hidden: what hidden states behind the last norm become before they are told, of weights that were turned.
        metrics: of several engines together; None: its own.
        on_compile: called as the compilation of a program begins, with its number from 1.
        link: the other hosts whose devices `backend` has too; each builds the same engine.
        on_device: called with what the engine runs on.

    Raises:
        UnsupportedError: the backend has no kernel for the model.
        InvalidParameterError: a context longer than the model's.
        CacheTooSmallError: the memory does not hold one text.
    """
    make, programs = _built(
        Programs,
        config,
        weights,
        backend,
        engine_config,
        replicas=1,
        dtype=dtype,
        kv_dtype=kv_dtype,
        eos_ids=eos_ids,
        tokenizer=tokenizer,
        hidden=hidden,
        metrics=metrics,
        on_compile=on_compile,
        link=link,
    )
    device: Device | SharedDevice = programs if link is None else hosted(programs, link)
    assert isinstance(device, Device)
    on_device(device)
    return make(device)


def build_one_program(
    config: ModelConfig,
    weights: Weights,
    backend: Backend,
    engine_config: EngineConfig,
    *,
    dtype: str = "float32",
    kv_dtype: str | None = None,
    eos_ids: frozenset[int] = frozenset(),
    tokenizer: Tokenizer | None = None,
    hidden: Hidden | None = None,
    metrics: Metrics | None = None,
    on_compile: Callable[[int], None] = lambda number: None,
    link: Link | None = None,
    on_device: Callable[[SharedDevice], None] = lambda device: None,
) -> OneProgram:
    """As build_engine, for all replicas of the layout of a ShardedBackend; `engine_config` is that of each."""
    assert isinstance(backend, ShardedBackend)
    if backend.layout.in_step:  # what is sent takes everybody, in every decode step
        engine_config = replace(engine_config, max_decode_steps=1)
    make, programs = _built(
        ReplicatedPrograms,
        config,
        weights,
        backend,
        engine_config,
        replicas=backend.layout.replicas,
        dtype=dtype,
        kv_dtype=kv_dtype,
        eos_ids=eos_ids,
        tokenizer=tokenizer,
        hidden=hidden,
        metrics=metrics,
        on_compile=on_compile,
        link=link,
    )
    device: Device | SharedDevice = programs if link is None else hosted(programs, link)
    assert isinstance(device, SharedDevice)
    on_device(device)
    return OneProgram(device, make)


def _built[P: Programs](
    kind: type[P],
    config: ModelConfig,
    weights: Weights,
    backend: Backend,
    engine_config: EngineConfig,
    *,
    replicas: int,
    dtype: str,
    kv_dtype: str | None,
    eos_ids: frozenset[int],
    tokenizer: Tokenizer | None,
    hidden: Hidden | None,
    metrics: Metrics | None,
    on_compile: Callable[[int], None],
    link: Link | None,
) -> tuple[Callable[[Device], Engine], P]:
    """What makes an engine on a device, and the device."""
    types, kv_types = jnp.dtype(dtype), jnp.dtype(kv_dtype or dtype)
    if engine_config.expert_load and not num_experts(config):
        raise InvalidParameterError("expert_load", True, f"False, since {config.family} has no experts")
    context = engine_config.context or config.max_positions
    if context > config.max_positions:
        raise InvalidParameterError("context", context, f"at most {config.max_positions}, the model's own")
    backend.check(
        config.cache_groups,
        dtype=types,
        kv_dtype=kv_types,
        page_size=backend.page_size,
        table_entries=engine_config.max_batch * -(-context // backend.page_size),
    )
    one_shape = engine_config.deterministic and not backend.capabilities.batch_invariant
    if one_shape:
        chunk = min(_FIXED_CHUNK, engine_config.max_step_tokens)
        engine_config = replace(engine_config, fixed_chunk=chunk)
    max_batch, page_size = engine_config.max_batch, backend.page_size
    chunk = min(engine_config.max_step_tokens, context)
    engine_config = replace(engine_config, context=context, max_step_tokens=chunk)
    num_pages = cache_pages(
        config.cache_groups,
        backend,
        page_size=page_size,
        dtype=kv_types,
        max_batch=max_batch,
        max_len=context,
        chunk=chunk,
        memory=engine_config.kv_memory,
    )
    if link is not None:
        num_pages = link.smallest(num_pages)
    counted = metrics or Metrics(max_batch=max_batch, num_pages=sum(num_pages), page_size=page_size)

    def count_compile(unexpected: bool) -> None:
        counted.compiled(unexpected=unexpected)
        on_compile(counted.compiles)

    sizes = backend.buckets(max(chunk, max_batch))
    programs = kind(
        config,
        weights,
        backend,
        kv_types,
        num_slots=max_batch,
        max_len=context,
        page_size=page_size,
        num_pages=num_pages,
        buckets=plan_buckets(sizes, max_batch=max_batch, max_step_tokens=chunk, one_size=one_shape),
        max_steps=engine_config.max_decode_steps,
        replicas=replicas,
        expert_load=engine_config.expert_load,
        on_compile=count_compile,
    )

    def make(device: Device) -> Engine:
        return Engine(
            device,
            engine_config,
            vocab_size=config.vocab_size,
            eos_ids=eos_ids,
            tokenizer=tokenizer,
            hidden=hidden,
            metrics=counted,
        )

    return make, programs
