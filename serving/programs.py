"""Compiled steps for one sequence, made when first needed and kept."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..backends.base import Backend, Program
from ..models.config import ModelConfig
from ..models.decoder import Weights
from ..models.kv_cache import KVCache, RaggedBatch, allocate_cache
from ..models.sampling import SamplingRows
from ..models.step import Step, StepOutput
from .types import SamplingParams


@dataclass(frozen=True)
class Shape:
    """What a program is compiled for: tokens in a step, and pages of the sequence."""

    num_tokens: int
    num_pages: int


class Programs:
    """Runs a model's step on one sequence at a time."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        backend: Backend,
        dtype: DTypeLike,
        on_compile: Callable[[], None] = lambda: None,
    ) -> None:
        self.compile_seconds = 0.0
        self._config = config
        self._backend = backend
        self._dtype = dtype
        self._weights = backend.prepare_params(weights)
        self._step = Step(config, backend)
        self._programs: dict[Shape, Program] = {}
        self._on_compile = on_compile

    def prepare(self, shape: Shape) -> None:
        """Compiles for a shape, unless that is done."""
        if shape in self._programs:
            return
        self._on_compile()
        start = time.perf_counter()
        cache = jax.eval_shape(lambda: self.new_cache(shape.num_pages))
        args = (self._weights, cache, *self._inputs(shape, [0], 0, SamplingParams(seed=0)))
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), args)
        self._programs[shape] = self._backend.compile(self._step, abstract, donate=(1,))
        self.compile_seconds += time.perf_counter() - start

    def new_cache(self, num_pages: int) -> KVCache:
        """Pages for one sequence, in every group."""
        pages = [num_pages] * len(self._config.cache_groups)
        return allocate_cache(
            self._config, self._backend, num_pages=pages, page_size=self._backend.page_size, dtype=self._dtype
        )

    def run(
        self, shape: Shape, cache: KVCache, tokens: Sequence[int], start: int, params: SamplingParams
    ) -> tuple[int, KVCache]:
        """Appends `tokens` from position `start` on; returns the token drawn behind them. The cache is consumed."""
        batch, rows = self._inputs(shape, tokens, start, params)
        output: StepOutput
        output, cache = self._programs[shape](self._weights, cache, batch, rows)
        return int(self._backend.get(output.tokens)[0, 0]), cache

    def _inputs(
        self, shape: Shape, tokens: Sequence[int], start: int, params: SamplingParams
    ) -> tuple[RaggedBatch, SamplingRows]:
        assert params.seed is not None
        batch = RaggedBatch.single(
            tokens,
            start,
            num_tokens=shape.num_tokens,
            num_pages=shape.num_pages,
            num_groups=len(self._config.cache_groups),
        )
        rows = SamplingRows(
            temperature=jnp.asarray([params.temperature], jnp.float32),
            top_k=jnp.asarray([min(params.top_k, self._config.vocab_size)], jnp.int32),
            top_p=jnp.asarray([params.top_p], jnp.float32),
            min_p=jnp.asarray([params.min_p], jnp.float32),
            seeds=jnp.asarray([[params.seed >> 32, params.seed & 0xFFFFFFFF]], jnp.uint32),
            choices=jnp.zeros(1, jnp.int32),
        )
        return batch, rows
