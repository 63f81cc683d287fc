"""The engine under a layout gives the tokens of one device: paged cache, continuous batching, shared prefixes."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.base import Backend
from distaff.backends.reference import ReferenceBackend
from distaff.backends.select import select_backend
from distaff.serving.engine_config import EngineConfig
from distaff.serving.llm import LLM, build_engine
from distaff.serving.replicas import Replicas
from distaff.serving.results import Completion
from distaff.serving.types import Request, SamplingParams
from distaff.sharding.backend import shard_backends
from distaff.sharding.errors import IndivisibleError

from .tiny import tiny


def answers(case: str, backends: Sequence[Backend]) -> list[tuple[int, ...]]:
    """Six requests on three rows, in chunks of 16 tokens; most begin alike."""
    config, weights = tiny(case)
    ids = np.random.default_rng(2).integers(0, config.vocab_size, 60).tolist()
    prompts = [ids[:20], ids[:33], ids[40:43], ids[:25], ids[:33], ids[7:24]]
    settings = EngineConfig(max_batch=3, context=64, max_step_tokens=16, max_decode_steps=4)
    with Replicas([build_engine(config, weights, backend, settings) for backend in backends]) as engines:
        requests = [Request(tuple(prompt), SamplingParams(max_tokens=8, temperature=0)) for prompt in prompts]
        results = engines.generate(requests)
        engines.check_integrity()
        assert all(engine.metrics.prefill.calls > 0 for engine in engines.engines)
    return [tuple(result.token_ids) for result in results if isinstance(result, Completion)]


def under(case: str, text: str, inner: Backend) -> list[tuple[int, ...]]:
    return answers(case, shard_backends(inner, tiny(case)[0], text, jnp.dtype(jnp.float32)))


@lru_cache
def on_one_device(case: str) -> list[tuple[int, ...]]:
    return answers(case, [ReferenceBackend()])


EVERY = (
    *("tensor=2", "tensor=4", "tensor-scatter:tensor=2", "attention-ff:tensor=2,tensor2=2"),
    *("sequence=4", "sequence=2,tensor=2", "stage=2,tensor=2", "data=2,tensor=2", "replica:data=3"),
    "tensor-2d:tensor=2,tensor2=2",
)
MIXTURES = ("expert=4", "expert:expert=2,tensor=2")


def pairs() -> list[Any]:
    """Every preset with every family that it can hold: one in CI, all in the soak."""
    dense = [(case, text) for case in ("llama31", "gemma3", "olmo2") for text in EVERY]
    dense.remove(("gemma3", "stage=2,tensor=2"))  # five layers of one kind and one of the other are no two stages
    mixed = [(case, text) for case in ("qwen3_moe", "gpt_oss") for text in (*EVERY, *MIXTURES)]
    return [
        pytest.param(*pair, marks=pytest.mark.slow if pair == ("llama31", "tensor=4") else pytest.mark.soak)
        for pair in (*dense, *mixed)
    ]


@pytest.mark.parametrize(("case", "text"), pairs())
def test_greedy_tokens_are_those_of_one_device(case: str, text: str) -> None:
    got = under(case, text, ReferenceBackend())
    assert len(set(got)) > 3 and got == on_one_device(case)


@pytest.mark.slow
def test_a_chips_own_form_of_weights_and_cache_is_kept_on_each_device() -> None:
    assert under("llama31", "tensor=4", select_backend("cpu")) == on_one_device("llama31")


@pytest.mark.slow
def test_a_model_by_name_runs_under_a_layout() -> None:
    golden = Path(__file__).parent.parent / "golden" / "smollm2"
    prompt, params = list(range(1, 30)), SamplingParams(max_tokens=8, temperature=0)
    tokens = []
    for layout in (None, "tensor=3", "data=2,tensor=3"):
        llm = LLM(golden, backend="reference", layout=layout, context=64, max_batch=2, max_step_tokens=16)
        tokens.append(llm.stream(prompt, params).completion().token_ids)
        llm.close()
    assert tokens[0] == tokens[1] == tokens[2]
    with pytest.raises(IndivisibleError, match="9 heads"):
        LLM(golden, backend="reference", layout="tensor=2")
