"""Every family against `transformers`: tiny random checkpoints, logits at every position, greedy tokens."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from distaff.models.config import ModelConfig
from distaff.models.decoder import Weights
from distaff.models.errors import ConfigError, UnknownArchitectureError
from distaff.models.families import FAMILIES, config_from_hf, family_named

from ..golden.harness import BF16_RATIO, CASES, FP32_BOUND, GOLDEN, MAX_TOKENS, Golden, Text

MIN_COMPARED = 16


VARIANTS = (
    "gemma3_published", "llama32", "llama_bias", "llama_dynamic", "llama_linear", "llama_yarn", "opt_350m", "opt_gelu",
    "phi3_longrope", "qwen25", "qwen3_moe_mixed", "smollm2",
)  # fmt: skip
"""Of families that have another case: slow tests."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(case, marks=pytest.mark.slow if case in VARIANTS else ()) for case in CASES],
)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(GOLDEN / request.param)


@pytest.fixture(scope="module")
def weights(golden: Golden) -> Weights:
    return golden.weights()


def worst(logits: np.ndarray, golden: Golden, start: int = 0) -> float:
    """Largest difference from the oracle's logits, from position `start` on."""
    return float(np.abs(logits - golden.logits[start : start + len(logits)]).max())


def test_goldens_can_tell(golden: Golden) -> None:
    assert golden.logits.std() >= 1.0
    assert golden.logits.shape == (len(golden.tokens), golden.config.vocab_size)
    assert len(golden.tokens) == golden.prompt_len or golden.clear() >= MIN_COMPARED


@pytest.mark.slow  # the prompt in three chunks, which comes next, is in the default suite
def test_prefill_logits(golden: Golden, weights: Weights) -> None:
    logits = Text(golden.config, weights).feed(golden.tokens)
    assert worst(logits, golden) <= FP32_BOUND


def test_decode_logits_and_tokens(golden: Golden, weights: Weights) -> None:
    """The prompt in uneven chunks, then token by token: its own choices where the oracle has some."""
    text = Text(golden.config, weights)
    end = golden.prompt_len
    # Without a greedy continuation (dynamic scaling), the last tokens of the prompt are fed one by one.
    greedy = len(golden.tokens) > end
    end -= 0 if greedy else 16
    found = [text.feed(golden.tokens[start:stop]) for start, stop in ((0, 17), (17, 18), (18, end))]
    tokens: list[int] = []
    for position in range(end, len(golden.tokens)):
        tokens.append(int(found[-1][-1].argmax()))
        found.append(text.feed([tokens[-1] if greedy else golden.tokens[position]]))
    if greedy:
        compared = golden.clear()
        print(f"{golden.folder.name}: {compared} greedy tokens compared")
        assert tokens[:compared] == golden.tokens[end : end + compared]
        # What follows another token than the oracle's cannot be compared.
        same = next(
            (i for i, (a, b) in enumerate(zip(tokens, golden.tokens[end:], strict=True)) if a != b), len(tokens)
        )
        found = found[: 3 + same]
    assert worst(np.concatenate(found), golden) <= FP32_BOUND


@pytest.mark.slow
def test_bf16_logits(golden: Golden) -> None:
    logits = Text(golden.config, golden.weights(jnp.bfloat16), jnp.bfloat16).feed(golden.tokens)
    error = float(np.sqrt(np.square(logits - golden.logits).mean()))
    print(f"{golden.folder.name}: rms error {error:.4f}, oracle {golden.bf16_error:.4f}, std {golden.logits.std():.2f}")
    assert error <= BF16_RATIO * golden.bf16_error
    assert golden.bf16_error <= 0.08 * golden.logits.std()  # or the bound above would say nothing


@pytest.mark.parametrize("case", ["llama31", pytest.param("gemma3", marks=pytest.mark.slow), "gpt_oss"])
def test_serving_step_agrees(case: str) -> None:
    """Decoding as serving does it, one token wide and with the sampler; here for one, two and three cache groups."""
    golden = Golden(GOLDEN / case)
    text = Text(golden.config, golden.weights())
    start = golden.prompt_len - 1
    text.feed(golden.tokens[:start])
    found, drawn = zip(*(text.step(token) for token in golden.tokens[start:-1]), strict=True)
    assert worst(np.stack(found), golden, start) <= FP32_BOUND
    compared = golden.clear()
    assert list(drawn[:compared]) == golden.tokens[start + 1 :][:compared]


@pytest.mark.parametrize("case", CASES)
def test_prompts_outlast_what_they_test(case: str) -> None:
    """Windows are shorter than the prompt, and the original length of a scaled RoPE as well."""
    golden = Golden(GOLDEN / case)
    for layer in golden.config.layers:
        if layer.attention.window is not None:
            assert layer.attention.window < golden.prompt_len
        scaling = None if layer.attention.rope is None else layer.attention.rope.scaling
        if scaling is not None and scaling.original_positions:
            assert scaling.original_positions < golden.prompt_len
    assert len(golden.tokens) <= min(MAX_TOKENS, golden.config.max_positions)


def test_dynamic_scaling_is_tested_at_the_longest_context() -> None:
    golden = Golden(GOLDEN / "llama_dynamic")
    assert golden.prompt_len == golden.config.max_positions


def test_every_family_has_a_golden_case() -> None:
    covered = {Golden(GOLDEN / case).config.family for case in CASES}
    # PaLM was never published, and its block is Cohere's; the multimodal Gemma 3 only names its tensors otherwise.
    assert {family.name for family in FAMILIES} - covered == {"palm", "gemma3_multimodal"}


def renamed(hf: dict[str, object], **changes: object) -> ModelConfig:
    return config_from_hf({key: value for key, value in {**hf, **changes}.items() if value is not ...})


@pytest.mark.parametrize(
    ("case", "older"),
    [
        ("llama31", dict(rope_parameters=..., rope_theta=1000.0, rope_scaling=dict(
            rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=16))),
        ("llama_linear", dict(rope_parameters=..., rope_theta=100.0, rope_scaling=dict(type="linear", factor=4.0))),
        ("llama_dynamic", dict(rope_parameters=..., rope_theta=100.0, rope_scaling=dict(type="dynamic", factor=3.0))),
        ("mistral", dict(rope_parameters=..., rope_theta=100.0, rope_scaling=None)),
        ("qwen2", dict(rope_parameters=..., rope_theta=100.0, layer_types=...)),
        ("qwen3_moe", dict(rope_parameters=..., rope_theta=100.0, num_local_experts=..., num_experts=6)),
        ("gemma3", dict(rope_parameters=..., rope_theta=2000.0, rope_local_base_freq=50.0, layer_types=...,
                        rope_scaling=dict(rope_type="linear", factor=8.0), sliding_window_pattern=6)),
        ("phi3", dict(rope_parameters=..., rope_theta=100.0, partial_rotary_factor=0.75, rope_scaling=None)),
        ("smollm3", dict(rope_parameters=..., rope_theta=500.0, no_rope_layers=..., layer_types=...)),
        ("glm4_moe", dict(rope_parameters=..., rope_theta=100.0, partial_rotary_factor=0.5)),
    ],
)  # fmt: skip
def test_older_configurations_mean_the_same(case: str, older: dict[str, object]) -> None:
    """Published files are in the form of transformers 4; some goldens are stored so, the others are compared here."""
    hf = json.loads((GOLDEN / case / "config.json").read_text())
    assert renamed(hf, **older) == renamed(hf)


def test_an_unknown_architecture_lists_the_known() -> None:
    with pytest.raises(UnknownArchitectureError, match=r"x\.json: model_type is 'mamba', expected one of .*llama"):
        config_from_hf({"model_type": "mamba"}, source="x.json")


def test_an_unknown_family_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="expected one of .*llama"):
        family_named("mamba")
