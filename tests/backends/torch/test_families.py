"""Every family's logits by the torch graph against those of `transformers` (the golden files), and against JAX's."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.select import select_backend
from distaff.models.decoder import bind
from distaff.models.kv_cache import RaggedBatch, allocate_cache
from distaff.models.layers import Machine
from distaff.models.placement import OneDevice

from ...golden.harness import BF16_RATIO, CASES, FP32_BOUND, GOLDEN, MAX_TOKENS, PAGE_SIZE, PAGES, Golden

BACKEND = select_backend("torch:cpu")


class TorchText:
    """One text on a model, as golden.harness.Text, by torch."""

    def __init__(self, golden: Golden, dtype: Any = jnp.float32) -> None:
        config = self.config = golden.config
        machine = Machine(BACKEND, OneDevice())
        self.weights = BACKEND.prepare_params(golden.weights(dtype))
        pages = [len(PAGES) + 1] * len(config.cache_groups)
        cache = allocate_cache(config, BACKEND, num_pages=pages, page_size=PAGE_SIZE, dtype=dtype)
        # Positions that were never written must not matter.
        self.cache = tuple(np.full(leaf.shape, np.nan, leaf.dtype) for leaf in cache)
        self.length = 0

        def forward(weights: Any, cache: Any, batch: RaggedBatch) -> Any:
            decoder = bind(config, weights)
            hidden, cache = decoder(batch, cache, machine)
            return decoder.logits(hidden, machine), cache

        self.forward = forward
        self.programs: dict[int, Any] = {}

    def feed(self, tokens: list[int], width: int = MAX_TOKENS) -> np.ndarray:
        groups = len(self.cache)
        batch = RaggedBatch.single(tokens, self.length, num_tokens=width, num_pages=len(PAGES), num_groups=groups)
        batch = replace(batch, page_tables=(jnp.asarray([PAGES], jnp.int32),) * groups)
        if width == 1:
            batch = replace(batch, max_query_len=1)
        args = (self.weights, self.cache, batch)
        if width not in self.programs:
            shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), args)
            self.programs[width] = BACKEND.compile(self.forward, shapes, donate=(1,))
        logits, self.cache = self.programs[width](*args)
        self.length += len(tokens)
        return np.asarray(logits)[: len(tokens)]


@pytest.mark.parametrize("case", CASES)
def test_a_prompt_in_chunks_then_token_by_token(case: str) -> None:
    golden = Golden(GOLDEN / case)
    text, end = TorchText(golden), len(golden.tokens) - 12
    found = [text.feed(golden.tokens[start:stop]) for start, stop in ((0, 17), (17, 18), (18, end))]
    found += [text.feed([token], width=1) for token in golden.tokens[end:]]
    worst = float(np.abs(np.concatenate(found) - golden.logits).max())
    print(f"{case}: logits at most {worst:.1e} from the oracle's")
    assert worst <= FP32_BOUND


@pytest.mark.parametrize("case", ["llama31", "gemma2", "gpt_oss", "qwen3_moe"])
def test_bf16_errs_no_more_than_the_oracle(case: str) -> None:
    golden = Golden(GOLDEN / case)
    logits = TorchText(golden, jnp.bfloat16).feed(golden.tokens)
    error = float(np.sqrt(np.square(logits - golden.logits).mean()))
    print(f"{case}: rms error {error:.4f}, oracle {golden.bf16_error:.4f}")
    assert error <= BF16_RATIO * golden.bf16_error
