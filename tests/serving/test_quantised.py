"""Engines with rounded weights and an 8-bit cache: batching, chunks, prefix hits and preemption change nothing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.errors import InvalidParameterError, UsageError
from distaff.backends.quantized import Quantized
from distaff.backends.select import select_backend
from distaff.models.checkpoints import open_checkpoint
from distaff.models.compress import parse_scheme, quantizer, rounded_as
from distaff.models.config import ModelConfig
from distaff.models.decoder import Weights, WeightSpec, flatten
from distaff.serving import LLM, EngineConfig, Request, SamplingParams, build_engine
from distaff.serving.cache_size import page_bytes

from ..golden.harness import CASES, GOLDEN, Golden
from ..simple_loop import SimpleLoop

MAX_LEN, NUM_TOKENS = 96, 24
DEFAULT = "gpt_oss"
EIGHT = ("int8", "int8")
MORE = {DEFAULT: [("int8-weight", "int8")], "llama31": [("int4:4", "int8")]}
"""What else weights and cache are held as, in these families."""


def rounded(golden: Golden, scheme: str) -> tuple[ModelConfig, Weights]:
    """As `--quantize` holds them, with the stream turned or not."""
    form = rounded_as(scheme, golden.config)
    return form.config, form.load(open_checkpoint(golden.folder), dtype=jnp.float32).weights


def prompts(golden: Golden) -> list[list[int]]:
    rng = np.random.default_rng(5)
    longest = min(MAX_LEN, golden.config.max_positions) - NUM_TOKENS
    first = rng.integers(0, golden.config.vocab_size, 50).tolist()
    texts = [rng.integers(0, golden.config.vocab_size, int(rng.integers(1, 60))).tolist() for _ in range(11)]
    return [text[:longest] for text in (first, [*first[:40], *texts[0]], *texts)]


@pytest.mark.parametrize(
    ("case", "scheme", "kv_dtype"),
    [
        pytest.param(
            case, *held, marks=pytest.mark.slow if case in (DEFAULT, "opt") or held != EIGHT else pytest.mark.soak
        )
        for case in CASES
        for held in (EIGHT, *MORE.get(case, ()))
    ],
)
def test_not_one_token_differs(case: str, scheme: str, kv_dtype: str) -> None:
    """On the CPU's kernels, with pages for little more than one text: rows lose theirs and start over."""
    golden, backend = Golden(GOLDEN / case), select_backend("cpu")
    max_len = min(MAX_LEN, golden.config.max_positions)
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.7, seed=3)
    loop = SimpleLoop(*rounded(golden, scheme), backend, max_len=max_len, dtype=jnp.dtype(kv_dtype))
    expected = [loop.generate(text, params)[0] for text in prompts(golden)]
    sizes = [page_bytes(g, backend, page_size=backend.page_size, dtype=kv_dtype) for g in golden.config.cache_groups]
    # The shortest context has three: with no more than those, no text loses pages to another.
    memory = int(max(1.2 * -(-max_len // backend.page_size), 5) * sum(sizes))
    settings = EngineConfig(context=max_len, max_batch=8, max_step_tokens=48, kv_memory=memory)
    with build_engine(*rounded(golden, scheme), backend, settings, kv_dtype=kv_dtype) as engine:
        got = [list(done.token_ids) for done in engine.generate([Request(tuple(t), params) for t in prompts(golden)])]  # pyright: ignore[reportAttributeAccessIssue]
        engine.check_integrity()
        snapshot = engine.metrics.snapshot()
    assert got == expected
    assert snapshot["prefix_hit_tokens"] > 0
    assert snapshot["preemptions"] > 0 or all(group.window is not None for group in golden.config.cache_groups)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_an_llm_rounds_as_it_is_told(backend: str) -> None:
    folder = GOLDEN / "llama31"
    with_eight = LLM(folder, quantize="int8", kv_dtype="int8", backend=backend, max_batch=1)
    plain = LLM(folder, backend=backend, max_batch=1)
    assert with_eight.quantize == "int8" and plain.quantize == ""
    score, exact = (llm.score([list(range(3, 40))])[0].logprobs.logprobs for llm in (with_eight, plain))
    apart = np.abs(score - exact).max()
    print(apart)
    assert 0 < apart < 0.5
    for llm in (with_eight, plain):
        llm.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int3"}, "quantize is 'int3', expected one of int8"),
        ({"quantize": "int4:64"}, "expected groups that divide the 32 inputs"),
        ({"kv_dtype": "int4"}, "kv_dtype is 'int4', expected one of float32, bfloat16, int8, fp8"),
    ],
)
def test_what_cannot_be_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameterError, match=message):
        LLM(GOLDEN / "llama31", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int4:4", "layout": "tensor=4"}, "in int4: .* do not divide into 4 parts"),
        ({"kv_dtype": "int8", "layout": "sequence=2"}, "kv_dtype int8 with layout sequence=2: shared pages hold no"),
    ],
)
def test_layouts_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LLM(GOLDEN / "llama31", backend="cpu", **options)


def test_leaves_are_rounded_as_they_are_loaded() -> None:
    """No more than one leaf is there in fp32 beside those that are done."""
    golden, alive = Golden(GOLDEN / "llama31"), {}
    made = quantizer(parse_scheme("int8"), golden.config)

    def counted(spec: WeightSpec, leaf: jax.Array) -> object:
        alive[spec.path] = leaf
        return made(spec, leaf)

    weights = open_checkpoint(golden.folder).load_weights(golden.config, dtype=jnp.float32, made=counted)
    rounded = {path: isinstance(leaf, Quantized) for path, leaf in flatten(weights).items()}
    assert {path: leaf.is_deleted() for path, leaf in alive.items()} == rounded and any(rounded.values())
