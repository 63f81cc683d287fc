"""The oracle of the engine: one text at a time, its pages in order, a token after another, nothing shared.

It runs the same pure step, without scheduler, batches, prefix cache, chunks or multi-step decode.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from distaff.backends.base import Backend, Program
from distaff.models.config import ModelConfig
from distaff.models.decoder import Weights
from distaff.models.kv_cache import KVCache, allocate_cache
from distaff.models.row_state import RowState, SamplingRows
from distaff.models.step import Step, StepBatch, StepOutput
from distaff.serving.rows import sampling_row
from distaff.serving.types import Request, SamplingParams

MIN_GAP = 0.02
"""Tokens are compared up to the first place where the two best logits are closer than this."""


class SimpleLoop:
    """Generates the obvious way."""

    def __init__(
        self, config: ModelConfig, weights: Weights, backend: Backend, *, max_len: int, dtype: DTypeLike = jnp.float32
    ) -> None:
        self.config = config
        self.backend = backend
        self.weights = backend.prepare_params(weights)
        self.max_len = max_len
        self.dtype = dtype
        self.num_pages = -(-max_len // backend.page_size)
        self.programs: dict[int, Program] = {}

    def generate(self, prompt: Sequence[int], params: SamplingParams, *, choice: int = 0) -> tuple[list[int], int]:
        """The answer, and how many of its tokens were drawn before the first close decision."""
        row = sampling_row(
            params, request=Request(tuple(prompt), params), choice=choice, prompt_len=len(prompt),
            vocab_size=self.config.vocab_size, eos_ids=frozenset(), max_len=self.max_len,
        )  # fmt: skip
        history = np.zeros((1, self.max_len), np.int32)
        history[0, : len(prompt)] = prompt
        state = RowState(jnp.asarray(history), SamplingRows.stack([row]))
        groups = len(self.config.cache_groups)
        cache = allocate_cache(
            self.config, self.backend, num_pages=[self.num_pages] * groups, page_size=self.backend.page_size,
            dtype=self.dtype,
        )  # fmt: skip
        start, clear = 0, None
        assert params.max_tokens is not None
        for end in range(len(prompt), len(prompt) + params.max_tokens):
            output, cache, state = self._step(cache, state, start, end)
            assert output.logits is not None
            best = np.sort(np.asarray(output.logits[0, 0]))[-2:]
            if clear is None and best[1] - best[0] < MIN_GAP:
                clear = end - len(prompt)
            start = end
        tokens = np.asarray(state.history)[0, len(prompt) : len(prompt) + params.max_tokens].tolist()
        return tokens, len(tokens) if clear is None else clear

    def _step(self, cache: KVCache, state: RowState, start: int, end: int) -> tuple[StepOutput, KVCache, RowState]:
        table = jnp.arange(self.num_pages, dtype=jnp.int32)[None]
        batch = StepBatch(
            slots=jnp.zeros(1, jnp.int32),
            query_starts=jnp.asarray([0, end - start], jnp.int32),
            kv_lens=jnp.asarray([end], jnp.int32),
            page_tables=(table,) * len(self.config.cache_groups),
            draws=jnp.ones(1, jnp.bool_),
            num_steps=jnp.int32(1),
        )
        num_tokens = 1 if end - start == 1 else self.max_len
        arguments = (self.weights, cache, state, batch)
        if num_tokens not in self.programs:
            step = Step(self.config, self.backend, num_tokens=num_tokens, return_logits=True)
            # By the backend, as the engine does: a compiler's options decide over the last bits.
            self.programs[num_tokens] = self.backend.compile(step, arguments, donate=(1, 2))
        return self.programs[num_tokens](*arguments)
