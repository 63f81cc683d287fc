"""SmolLM2-135M, a real model of 9 heads and 3 KV heads, under layouts: the tokens of one device."""

from functools import lru_cache
from pathlib import Path

import pytest

from distaff.serving import LLM, Completion, SamplingParams

PROMPTS = ["The capital of France is", "Once upon a time, in a village by the sea, there lived", "def fibonacci(n):"]


@lru_cache
def answers(model: Path, layout: str | None, backend: str) -> list[tuple[int, ...]]:
    """Greedy answers to the prompts, in fp32."""
    llm = LLM(model, backend=backend, layout=layout, context=64, max_batch=4, max_step_tokens=32)
    try:
        results = llm.generate(PROMPTS, SamplingParams(max_tokens=16, temperature=0, ignore_eos=True))
    finally:
        llm.close()
    assert all(isinstance(result, Completion) for result in results)
    return [tuple(result.token_ids) for result in results]


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param("tensor=3", marks=pytest.mark.slow),
        pytest.param("data=2,tensor=3", marks=pytest.mark.soak),
        pytest.param("sequence=4", marks=pytest.mark.soak),
        pytest.param("stage=2,tensor=3", marks=pytest.mark.soak),
    ],
)
def test_greedy_tokens_are_those_of_one_device(layout: str, smollm2: Path) -> None:
    expected = answers(smollm2, None, "reference")
    for backend in ("reference", "cpu"):
        got = answers(smollm2, layout, backend)
        assert got == expected, backend
        print(f"{layout}, {backend}: {sum(map(len, got))} tokens compared")
