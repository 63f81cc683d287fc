"""The engine against the simple loop, on every family: batching, chunks, prefix hits and preemption change nothing."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.backends.reference import ReferenceBackend
from distaff.backends.select import select_backend
from distaff.models.checkpoints import open_checkpoint
from distaff.models.decoder import bind
from distaff.models.kv_cache import RaggedBatch, allocate_cache
from distaff.models.layers import Machine
from distaff.models.placement import OneDevice
from distaff.serving import LLM, Engine, EngineConfig, Kind, Request, SamplingParams, build_engine
from distaff.serving.cache_size import page_bytes

from ..golden.harness import CASES, GOLDEN, Golden
from ..simple_loop import SimpleLoop

MAX_LEN, NUM_REQUESTS, NUM_TOKENS = 96, 32, 36
DEFAULT = "gpt_oss"  # windows beside full attention, sinks and experts; the slow suite has every family
BFLOAT16 = ("gemma2", "opt", "phi3", "qwen3_moe")  # in bfloat16 the slow suite has these, the soak every family


def max_len(golden: Golden) -> int:
    """Some models are made for fewer positions, so that their rope scaling shows."""
    return min(MAX_LEN, golden.config.max_positions)


def prompts(golden: Golden) -> list[list[int]]:
    """32 ragged prompts; a third shares a beginning with another."""
    rng = np.random.default_rng(5)
    longest = max_len(golden) - NUM_TOKENS
    texts = [golden.tokens[: min(golden.prompt_len, longest)]]
    while len(texts) < NUM_REQUESTS:
        fresh = rng.integers(0, golden.config.vocab_size, int(rng.integers(1, 60))).tolist()
        shared = texts[int(rng.integers(len(texts)))][: int(rng.integers(0, 40))] if len(texts) % 3 == 0 else []
        texts.append((shared + fresh)[:longest])
    return texts


def engine_of(
    golden: Golden, backend: str = "reference", dtype: str = "float32", *, share: float = 1.0, **config: object
) -> Engine:
    """An engine whose cache holds `share` of what its batch would fill."""
    chosen = select_backend(backend)
    settings = EngineConfig(context=max_len(golden), **{"max_batch": 8, "max_step_tokens": 64, **config})
    sizes = [page_bytes(group, chosen, page_size=chosen.page_size, dtype=dtype) for group in golden.config.cache_groups]
    pages = -(-max_len(golden) // chosen.page_size)
    memory = int(sum(sizes) * pages * max(1.0, share * settings.max_batch)) + 1
    weights = golden.weights(dtype)
    return build_engine(golden.config, weights, chosen, replace(settings, kv_memory=memory), dtype=dtype)


def tokens_of(engine: Engine, requests: list[Request]) -> list[list[int]]:
    return [list(result.token_ids) for result in engine.generate(requests)]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("case", "backend"),
    [
        pytest.param("smollm2", "reference", marks=pytest.mark.slow),
        *(pytest.param(case, "cpu", marks=() if case == DEFAULT else pytest.mark.slow) for case in CASES),
    ],
)
def test_tokens_are_those_of_the_simple_loop(case: str, backend: str) -> None:
    golden = Golden(GOLDEN / case)
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, seed=0)
    loop = SimpleLoop(golden.config, golden.weights(), select_backend(backend), max_len=max_len(golden))
    expected = [loop.generate(text, params) for text in prompts(golden)]
    # A quarter of the pages that a full batch takes: rows lose theirs and start over.
    with engine_of(golden, backend, share=0.25) as engine:
        got = tokens_of(engine, [Request(tuple(text), params) for text in prompts(golden)])
        engine.check_integrity()
        snapshot = engine.metrics.snapshot()
    for (tokens, clear), answer in zip(expected, got, strict=True):
        assert answer[:clear] == tokens[:clear]
    compared = sum(clear for _, clear in expected)
    preemptions, hits, chunks = snapshot["preemptions"], snapshot["prefix_hit_tokens"], snapshot["prefill"]["calls"]
    print(f"{case}, {backend}: {compared} compared; {preemptions} preemptions, {hits} tokens hit, {chunks} chunks")
    assert compared >= 8 * NUM_REQUESTS
    assert hits > 0 and chunks > 20
    # Rows whose every layer has a window keep as many pages as they begin with: they never run out.
    assert preemptions > 0 or all(group.window is not None for group in golden.config.cache_groups)


def in_bfloat16() -> list[Any]:
    later = {case: pytest.mark.slow if case in BFLOAT16 else pytest.mark.soak for case in CASES}
    return [pytest.param(case, marks=pytest.mark.slow if case == DEFAULT else later[case]) for case in CASES]


@pytest.mark.parametrize("case", in_bfloat16())
def test_deterministic_bf16_tokens_are_those_of_the_simple_loop(case: str) -> None:
    """Not one token differs, however close the decision: the numbers are the same bits."""
    golden, backend = Golden(GOLDEN / case), select_backend("cpu")
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, seed=0)
    weights = golden.weights(jnp.bfloat16)
    loop = SimpleLoop(golden.config, weights, backend, max_len=max_len(golden), dtype=jnp.bfloat16)
    expected = [loop.generate(text, params)[0] for text in prompts(golden)]
    with engine_of(golden, "cpu", "bfloat16", share=0.25, deterministic=True) as engine:
        got = tokens_of(engine, [Request(tuple(text), params) for text in prompts(golden)])
        assert engine.metrics.preemptions > 0 or all(group.window is not None for group in golden.config.cache_groups)
    assert got == expected


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_real_model_writes_what_the_simple_loop_writes(smollm2: Path, dtype: str) -> None:
    """SmolLM2, 32 requests at once, ragged prompts, a cache that is too small for them."""
    rng = np.random.default_rng(3)
    memory = {"float32": 2**25, "bfloat16": 2**24}[dtype]  # 728 positions, for 16 rows of 116 on the average
    llm = LLM(
        smollm2, dtype=dtype, deterministic=True, max_batch=16, context=256, max_step_tokens=128, kv_memory=memory
    )
    assert llm.tokenizer is not None
    source = llm.tokenizer.encode((Path(__file__).parents[2] / "LICENSE").read_text())
    texts: list[list[int]] = []
    while len(texts) < NUM_REQUESTS:
        start, count = int(rng.integers(len(source) - 180)), int(rng.integers(4, 180))
        begin = (
            source[: int(rng.integers(40, 80))] if len(texts) % 3 == 0 else []
        )  # shared with the others that have it
        texts.append((begin + source[start : start + count])[:180])
    params = SamplingParams(max_tokens=24, temperature=0, seed=0, ignore_eos=True)
    checkpoint = open_checkpoint(smollm2)
    weights = checkpoint.load_weights(llm.config, dtype=jnp.dtype(dtype))
    loop = SimpleLoop(llm.config, weights, llm.backend, max_len=256, dtype=jnp.dtype(dtype))
    expected = [loop.generate(text, params) for text in texts]
    assert isinstance(llm.engine, Engine)
    got = tokens_of(llm.engine, [Request(tuple(text), params) for text in texts])
    compared, metrics = sum(clear for _, clear in expected), llm.engine.metrics
    print(f"{compared} tokens compared, {metrics.preemptions} preemptions, {metrics.prefix_hit_tokens} tokens hit")
    for (tokens, clear), answer in zip(expected, got, strict=True):
        # The same bits in bf16; in fp32 the same decisions, where they are not close.
        clear = len(tokens) if dtype == "bfloat16" else clear
        assert answer[:clear] == tokens[:clear]
    assert compared >= 16 * NUM_REQUESTS and metrics.prefix_hit_tokens > 0 and metrics.preemptions > 0
    llm.close()


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden(GOLDEN / "smollm2")


SEEDED = SamplingParams(max_tokens=36, temperature=1.5, top_p=0.95, seed=2**40 + 7, frequency_penalty=0.2)


@pytest.fixture(scope="module")
def alone(golden: Golden) -> list[int]:
    loop = SimpleLoop(golden.config, golden.weights(), select_backend("cpu"), max_len=max_len(golden))
    return loop.generate(golden.tokens[:40], SEEDED)[0]


SHAPES = tuple((chunk, steps) for chunk in (16, 64, 256) for steps in (1, 8))


@pytest.fixture(scope="module", params=[((16, 8), (64, 1)), pytest.param(SHAPES, marks=pytest.mark.slow)], ids=len)
def engines(golden: Golden, request: pytest.FixtureRequest) -> Iterator[dict[tuple[int, int], Engine]]:
    """By the tokens of a step and the most decode steps in a call; pages for a quarter."""
    with ExitStack() as stack:
        yield {
            (chunk, steps): stack.enter_context(
                engine_of(golden, "cpu", share=0.25, max_step_tokens=chunk, max_decode_steps=steps)
            )
            for chunk, steps in request.param
        }


@pytest.mark.slow
@settings(max_examples=20, derandomize=True, database=None)
@given(
    shape=st.integers(0, len(SHAPES) - 1),
    neighbours=st.lists(st.tuples(st.integers(0, 31), st.integers(0, 2**64 - 1)), max_size=31),
    place=st.integers(0, 31),
)
def test_a_seed_gives_the_same_tokens_whatever_surrounds_it(
    golden: Golden,
    alone: list[int],
    engines: dict[tuple[int, int], Engine],
    shape: int,
    neighbours: list[tuple[int, int]],
    place: int,
) -> None:
    """Alone or crowded, in chunks of any size, one or eight steps in a call, whatever the cache holds already."""
    texts = prompts(golden)
    requests = [Request(tuple(texts[which]), replace(SEEDED, seed=seed)) for which, seed in neighbours]
    place = min(place, len(requests))
    requests.insert(place, Request(tuple(golden.tokens[:40]), SEEDED))
    assert tokens_of(list(engines.values())[shape % len(engines)], requests)[place] == alone


@pytest.mark.slow
def test_a_seed_gives_the_same_tokens_after_preemption(
    golden: Golden, alone: list[int], engines: dict[tuple[int, int], Engine]
) -> None:
    request = Request(tuple(golden.tokens[:40]), SEEDED)
    others = [Request(tuple(text), replace(SEEDED, seed=i)) for i, text in enumerate(prompts(golden)[:31])]
    for shape, engine in engines.items():
        before = engine.metrics.preemptions
        assert tokens_of(engine, [*others[::2], request, *others[1::2]])[len(others[::2])] == alone, shape
        assert engine.metrics.preemptions > before


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_deterministic_logits_are_the_same_bits_alone_and_in_a_crowd(golden: Golden, backend: str) -> None:
    """In bfloat16: every log-probability of a row among 31 neighbours equals those it gets alone, to the last bit."""
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=3, logprobs=20)
    request = Request(tuple(golden.tokens[:40]), params)
    others = [Request(tuple(text), replace(params, seed=i)) for i, text in enumerate(prompts(golden)[:31])]

    def answer(requests: list[Request], **config: object) -> object:
        with engine_of(golden, backend, "bfloat16", deterministic=True, share=0.3, **config) as engine:
            result = engine.generate(requests)[requests.index(request)]
            return result.choices[0].token_ids, result.choices[0].logprobs  # pyright: ignore[reportAttributeAccessIssue]

    crowd = [*others[:15], request, *others[15:]]
    assert answer([request]) == answer(crowd) == answer(crowd, max_decode_steps=1)


@pytest.mark.slow
def test_requests_are_served_while_programs_are_still_being_compiled(golden: Golden) -> None:
    params = SamplingParams(max_tokens=8, temperature=0, seed=0)
    requests = [Request(tuple(text), params) for text in prompts(golden)[:6]]
    with engine_of(golden, "cpu") as engine:
        expected = tokens_of(engine, requests)
    with engine_of(golden, "cpu", max_batch=9) as engine:  # of a size that nothing is compiled for yet
        engine.warm_up(background=True)
        assert tokens_of(engine, requests) == expected
        deadline = time.monotonic() + 120
        while not engine.is_warm and time.monotonic() < deadline:
            time.sleep(0.05)
        assert engine.is_warm and engine.metrics.unexpected_compiles == 0
    with engine_of(golden, "cpu", max_batch=10) as engine:
        engine.warm_up(background=True)  # and closed at once


def test_scores_are_the_log_probabilities_of_the_text(golden: Golden) -> None:
    text = golden.tokens[:50]
    with engine_of(golden) as engine:
        several = [Request(tuple(text), SamplingParams(prompt_logprobs=3), Kind.SCORE)] * 2
        first, again = engine.generate(several)
    expected = np.asarray(jax.nn.log_softmax(golden.logits[: len(text) - 1], axis=-1))
    for score in (first, again):
        got = score.logprobs  # pyright: ignore[reportAttributeAccessIssue]
        assert got[0] is None and len(got) == len(text)
        np.testing.assert_allclose(got.logprobs, expected[np.arange(len(text) - 1), text[1:]], atol=2e-4)
        np.testing.assert_allclose(got.top, np.sort(expected, axis=-1)[:, ::-1][:, :3], atol=2e-4)


@pytest.mark.parametrize("pooling", ["mean", pytest.param("last", marks=pytest.mark.slow)])
def test_an_embedding_pools_what_the_decoder_leaves(golden: Golden, pooling: str) -> None:
    backend, text = ReferenceBackend(), golden.tokens[:70]
    cache = allocate_cache(golden.config, backend, num_pages=[6], page_size=16, dtype=jnp.float32)
    batch = RaggedBatch.single(text, 0, num_tokens=70, num_pages=6, num_groups=1)
    hidden, _ = bind(golden.config, golden.weights())(batch, cache, Machine(backend, OneDevice()))
    expected = hidden.mean(axis=0) if pooling == "mean" else hidden[-1]
    with engine_of(golden, max_step_tokens=32) as engine:  # three chunks
        (result,) = engine.generate([Request(tuple(text), kind=Kind.EMBED, pooling=pooling)])  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(result.vector, expected, atol=1e-4)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_nothing_is_compiled_after_warm_up_in_500_random_requests(golden: Golden) -> None:
    rng = np.random.default_rng(1)
    with engine_of(golden, "cpu", share=0.5) as engine:
        engine.warm_up()
        compiled = engine.metrics.compiles
        live = []
        for number in range(500):
            text = rng.integers(0, golden.config.vocab_size, int(rng.integers(1, 70))).tolist()
            params = SamplingParams(
                max_tokens=int(rng.integers(1, 20)),
                temperature=float(rng.choice([0.0, 1.0])),
                logprobs=3 if number % 7 == 0 else None,
                prompt_logprobs=1 if number % 11 == 0 else None,
                repetition_penalty=1.2 if number % 5 == 0 else 1.0,
                n=2 if number % 13 == 0 else 1,
            )
            live.append(engine.submit(Request(tuple(text), params)))
            if number % 3 == 0:
                engine.step()
            if number % 17 == 0:
                live.pop(int(rng.integers(len(live)))).close()
        for generation in live:
            generation.result()
        assert compiled == engine.metrics.compiles >= 5 and engine.metrics.unexpected_compiles == 0
        engine.check_integrity()
