"""The engine under a layout gives the tokens of one device: paged cache, continuous batching, shared prefixes."""

from functools import lru_cache
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.base import Backend
from distaff.backends.reference import ReferenceBackend
from distaff.backends.select import select_backend
from distaff.serving.engine_config import EngineConfig
from distaff.serving.llm import LLM, build_engine
from distaff.serving.results import Completion
from distaff.serving.types import Request, SamplingParams
from distaff.sharding.backend import ShardedBackend
from distaff.sharding.check import Devices, check_layout
from distaff.sharding.errors import IndivisibleError
from distaff.sharding.mesh import make_mesh
from distaff.sharding.parsing import parse_layout

from .tiny import tiny


def sharded(case: str, text: str, inner: Backend) -> ShardedBackend:
    config, _ = tiny(case)
    layout = parse_layout(text, num_devices=8)
    check_layout(layout, config, Devices(8), dtype=jnp.float32)
    return ShardedBackend(inner, config, jnp.dtype(jnp.float32), layout, make_mesh(layout))


def answers(case: str, backend: Backend) -> list[tuple[int, ...]]:
    """Six requests on three rows, in chunks of 16 tokens; most begin alike."""
    config, weights = tiny(case)
    ids = np.random.default_rng(2).integers(0, config.vocab_size, 60).tolist()
    prompts = [ids[:20], ids[:33], ids[40:43], ids[:25], ids[:33], ids[7:24]]
    settings = EngineConfig(max_batch=3, context=64, max_step_tokens=16, max_decode_steps=4)
    with build_engine(config, weights, backend, settings) as engine:
        requests = [Request(tuple(prompt), SamplingParams(max_tokens=8, temperature=0)) for prompt in prompts]
        results = engine.generate(requests)
        engine.check_integrity()
        assert engine.metrics.prefill.calls > 0
    return [tuple(result.token_ids) for result in results if isinstance(result, Completion)]


@lru_cache
def on_one_device(case: str) -> list[tuple[int, ...]]:
    return answers(case, ReferenceBackend())


@pytest.mark.parametrize(
    ("case", "text"),
    [
        pytest.param("llama31", "tensor=4", marks=pytest.mark.slow),
        pytest.param("qwen3_moe", "stage=2,tensor=2", marks=pytest.mark.soak),
        pytest.param("olmo2", "stage=3", marks=pytest.mark.soak),
        pytest.param("gpt_oss", "sequence=4", marks=pytest.mark.soak),
        pytest.param("gemma3", "sequence=2,tensor=2", marks=pytest.mark.soak),
        pytest.param("llama31", "sequence=4", marks=pytest.mark.soak),
        pytest.param("gpt_oss", "expert:expert=2,tensor=2", marks=pytest.mark.soak),
        pytest.param("qwen3_moe", "tensor-scatter:tensor=4", marks=pytest.mark.soak),
        pytest.param("gemma3", "tensor=4", marks=pytest.mark.soak),
        *(
            pytest.param(case, text, marks=pytest.mark.soak)
            for case in ("llama31", "qwen3_moe", "gemma3", "gpt_oss")
            for text in ("tensor=2", "tensor-scatter:tensor=2", "attention-ff:tensor=2,tensor2=2")
        ),
        *(pytest.param(case, "expert=4", marks=pytest.mark.soak) for case in ("qwen3_moe", "gpt_oss")),
        *(
            pytest.param(case, "tensor-2d:tensor=2,tensor2=2", marks=pytest.mark.soak)
            for case in ("llama31", "gemma3", "olmo2")
        ),
    ],
)
def test_greedy_tokens_are_those_of_one_device(case: str, text: str) -> None:
    got = answers(case, sharded(case, text, ReferenceBackend()))
    assert len(set(got)) > 3 and got == on_one_device(case)


@pytest.mark.slow
def test_a_chips_own_form_of_weights_and_cache_is_kept_on_each_device() -> None:
    assert answers("llama31", sharded("llama31", "tensor=4", select_backend("cpu"))) == on_one_device("llama31")


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
