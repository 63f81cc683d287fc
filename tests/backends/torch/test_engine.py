"""The engine on torch: the tokens of the reference backend, greedy and drawn, and nothing that JAX executes."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from distaff.backends.base import Backend
from distaff.backends.select import select_backend
from distaff.serving import Engine, EngineConfig, Request, SamplingParams, build_engine
from distaff.serving.cache_size import page_bytes

from ...golden.harness import CASES, GOLDEN, Golden
from ...serving import test_engine_on_models as suite

MAX_LEN, NUM_TOKENS = 96, 24


def engine_of(golden: Golden, backend: str | Backend, kv_dtype: str = "float32", **config: Any) -> Engine:
    chosen = select_backend(backend) if isinstance(backend, str) else backend
    context = min(MAX_LEN, golden.config.max_positions)
    settings = EngineConfig(context=context, max_batch=4, max_step_tokens=32, **config)
    size, groups = chosen.page_size, golden.config.cache_groups
    one = sum(page_bytes(group, chosen, page_size=size, dtype=kv_dtype) for group in groups)
    settings = replace(settings, kv_memory=one * (4 * -(-context // size) + 1) + 1)
    return build_engine(golden.config, golden.weights(), chosen, settings, kv_dtype=kv_dtype)


def requests(golden: Golden, count: int, **params: object) -> list[Request]:
    rng = np.random.default_rng(3)
    longest = min(MAX_LEN, golden.config.max_positions) - NUM_TOKENS
    texts = [golden.tokens[: min(golden.prompt_len, longest)]]
    texts += [rng.integers(0, golden.config.vocab_size, rng.integers(1, longest)).tolist() for _ in range(count - 1)]
    return [
        Request(tuple(text), SamplingParams(max_tokens=NUM_TOKENS, **{"temperature": 0.0, "seed": number, **params}))
        for number, text in enumerate(texts)
    ]


def tokens_of(golden: Golden, backend: str, wanted: list[Request], kv_dtype: str = "float32") -> list[list[int]]:
    with engine_of(golden, backend, kv_dtype) as engine:
        if backend != "reference":  # which takes long to compile what these requests do not need
            engine.warm_up()
        answers = [list(result.token_ids) for result in engine.generate(wanted)]  # pyright: ignore[reportAttributeAccessIssue]
        engine.check_integrity()
        assert engine.metrics.unexpected_compiles == 0
    return answers


QUICK = ("llama31", "gemma2", "gpt_oss", "qwen3_moe")
"""Whose tokens are compared even where there is no time for slow tests."""


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_greedy_tokens_of_every_family(case: str) -> None:
    golden = Golden(GOLDEN / case)
    want, got = (tokens_of(golden, backend, requests(golden, 6)) for backend in ("reference", "torch:cpu"))
    assert got == want


@pytest.mark.parametrize(
    ("case", "kv_dtype"),
    [
        ("llama31", "int8"),
        pytest.param("gemma2", "float8_e4m3fn", marks=pytest.mark.slow),
        pytest.param("gpt_oss", "int8", marks=pytest.mark.slow),
    ],
)
def test_greedy_tokens_with_a_cache_of_8_bits(case: str, kv_dtype: str) -> None:
    golden = Golden(GOLDEN / case)
    want, got = (tokens_of(golden, each, requests(golden, 6), kv_dtype) for each in ("reference", "torch:cpu"))
    assert got == want


def test_the_cache_is_written_in_place() -> None:
    golden = Golden(GOLDEN / "llama31")
    with engine_of(golden, "torch:cpu") as engine:

        def held() -> list[int]:
            return [leaf.tensor.data_ptr() for leaf in jax.tree.leaves(engine._device._cache)]  # pyright: ignore[reportAttributeAccessIssue]

        engine.generate(requests(golden, 1))
        before = held()
        engine.generate(requests(golden, 3))
        assert held() == before


def test_deterministic_logits_are_the_same_bits_alone_and_in_a_crowd() -> None:
    suite.test_deterministic_logits_are_the_same_bits_alone_and_in_a_crowd(Golden(GOLDEN / "smollm2"), "torch:cpu")


SAMPLING: tuple[dict[str, Any], ...] = (
    dict(temperature=1.0),
    dict(temperature=0.8, top_k=20, top_p=0.9),
    dict(temperature=1.2, min_p=0.05),
    dict(temperature=1.0, typical_p=0.5),
    dict(temperature=0.7, repetition_penalty=1.3, frequency_penalty=0.2),
    dict(temperature=0.0, logprobs=5, logit_bias={3: 4.0}),
)


def test_seeds_mean_the_same() -> None:
    golden = Golden(GOLDEN / "llama31")
    wanted = [request for params in SAMPLING for request in requests(golden, 4, **params)]
    got, want = (tokens_of(golden, backend, wanted) for backend in ("torch:cpu", "reference"))
    for number, request in enumerate(wanted):
        assert got[number] == want[number], request.params


def test_jax_executes_nothing_once_the_graph_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Golden(GOLDEN / "llama31")
    with engine_of(golden, "torch:cpu") as engine:
        engine.warm_up()

        def forbidden(*args: object, **kwargs: object) -> None:
            raise AssertionError("JAX was asked to execute something")

        # Whatever JAX is to execute, it has to compile first: all that it had compiled is forgotten, but for what the
        # engine might hold itself.
        compiled: list[str] = []

        def hear(event: str, duration_secs: float, **kwargs: str | int) -> None:
            if "backend_compile" in event:
                compiled.append(event)

        monkeypatch.setattr(jax.stages.Compiled, "__call__", forbidden)
        wanted = requests(golden, 3)
        jax.clear_caches()
        jax.monitoring.register_event_duration_secs_listener(hear)
        try:
            answers = engine.generate(wanted)
            assert not compiled
            jax.numpy.ones(3).block_until_ready()
            assert compiled, "the hook hears nothing"
        finally:
            jax.monitoring.unregister_event_duration_listener(hear)
    assert all(len(answer.token_ids) == NUM_TOKENS for answer in answers)  # pyright: ignore[reportAttributeAccessIssue]
