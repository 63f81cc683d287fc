"""The engine on the kernels of TPUs, interpreted: the reference's tokens, and no other way to them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.base import Backend
from distaff.backends.errors import UnsupportedError
from distaff.backends.reference import ReferenceBackend
from distaff.backends.tpu import backend as tpu
from distaff.backends.tpu.backend import TpuBackend
from distaff.models.decoder import init_weights
from distaff.models.families import config_from_hf
from distaff.serving import EngineConfig, Request, SamplingParams, build_engine
from distaff.serving.cache_size import page_bytes

INTERPRETED = TpuBackend(interpret=True, page_size=16)
PARAMS = SamplingParams(max_tokens=10, temperature=0, seed=0)
SMOLLM2 = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 97, "hidden_size": 48,
    "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 100000, "tie_word_embeddings": True,
    "hidden_act": "silu",
}  # fmt: skip
"""The heads of SmolLM2, little else."""
GEMMA3 = SMOLLM2 | {
    "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "num_attention_heads": 4,
    "num_key_value_heads": 1, "head_dim": 80, "sliding_window": 12, "query_pre_attn_scalar": 80,
    "layer_types": ["sliding_attention", "full_attention"], "hidden_activation": "gelu_pytorch_tanh",
    "rope_local_base_freq": 10000.0,
}  # fmt: skip
"""Windows beside full attention, an odd head width."""
MIXTRAL = SMOLLM2 | {
    "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 5, "num_experts_per_tok": 2,
    "sliding_window": None, "tie_word_embeddings": False,
}  # fmt: skip
"""Experts."""


def tokens(hf: dict[str, Any], backend: Backend) -> list[list[int]]:
    """Ten greedy tokens of six ragged prompts in chunks of 32, with pages for less than all."""
    model, rng = config_from_hf(hf), np.random.default_rng(5)
    weights = jax.tree.map(lambda leaf: leaf * 6, init_weights(model, seed=0, dtype=jnp.float32))
    texts = [rng.integers(0, model.vocab_size, count).tolist() for count in (1, 15, 16, 17, 40, 57)]
    pages = sum(page_bytes(group, backend, page_size=16, dtype="float32") for group in model.cache_groups)
    config = EngineConfig(max_batch=4, context=80, max_step_tokens=32, kv_memory=6 * pages + 1, max_decode_steps=4)
    with build_engine(model, weights, backend, config) as engine:
        results = engine.generate([Request(tuple(text), PARAMS) for text in texts])
        engine.check_integrity()
        return [list(result.token_ids) for result in results]  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
@pytest.mark.parametrize("hf", [SMOLLM2, GEMMA3, MIXTRAL], ids=["smollm2", "gemma3", "mixtral"])
def test_tokens_are_those_of_the_reference(hf: dict[str, Any]) -> None:
    got = tokens(hf, INTERPRETED)
    assert got == tokens(hf, ReferenceBackend()) and all(len(answer) == 10 for answer in got)
    assert len({tuple(answer) for answer in got}) == len(got)


def test_a_page_table_that_scalar_memory_has_no_room_for_is_refused_when_the_engine_is_built() -> None:
    model = config_from_hf(SMOLLM2)
    config = EngineConfig(max_batch=2**14 + 1)
    with pytest.raises(UnsupportedError, match="page table entries 131080, supported are at most 131072"):
        build_engine(model, {}, INTERPRETED, config)


@pytest.mark.parametrize(
    ("kernel", "hf"),
    [
        ("decode_attention", SMOLLM2),
        ("prefill_attention", SMOLLM2),
        pytest.param("grouped_matmul", MIXTRAL, marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nothing_else_computes_where_a_kernel_fails(
    kernel: str, hf: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {operation: name for operation, name in INTERPRETED.kernels.items() if "attention" in operation} == {
        "ragged_attention (decode)": "Pallas for v6e, interpreted: decode_attention",
        "ragged_attention (prefill)": "Pallas for v6e, interpreted: prefill_attention",
        "dense_attention": "Pallas for v6e, interpreted: flash_attention",
    }

    def broken(*args: Any, **kwargs: Any) -> Callable[..., Any]:
        raise RuntimeError(f"{kernel} is broken")

    monkeypatch.setattr(tpu, kernel, broken)
    with pytest.raises(Exception, match=f"{kernel} is broken"):
        tokens(hf, INTERPRETED)
