"""Mutations: with one feature switched off, logits must move by at least 100 times the bound of the comparison.

Otherwise a golden file would pass without the feature, and prove nothing about it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from distaff.models.config import LayerConfig, MlpConfig, ModelConfig, MoeConfig
from distaff.models.decoder import Weights, flatten, unflatten
from distaff.models.rope import RopeConfig, RopeScaling

from ..golden.harness import FP32_BOUND, GOLDEN, Golden, Text, restacked

type Mutation = Callable[[ModelConfig], ModelConfig]
type WeightMutation = Callable[[Weights], Weights]

MOVED = 100 * FP32_BOUND


def layers(change: Callable[[LayerConfig], LayerConfig]) -> Mutation:
    return lambda config: replace(config, layers=tuple(change(layer) for layer in config.layers))


def layer(**changes: Any) -> Mutation:
    return layers(lambda old: replace(old, **changes))


def attention(**changes: Any) -> Mutation:
    return layers(lambda old: replace(old, attention=replace(old.attention, **changes)))


def mlp(**changes: Any) -> Mutation:
    return layers(lambda old: replace(old, mlp=replace(old.mlp, **changes)) if isinstance(old.mlp, MlpConfig) else old)


def moe(**changes: Any) -> Mutation:
    return layers(lambda old: replace(old, mlp=replace(old.mlp, **changes)) if isinstance(old.mlp, MoeConfig) else old)


def expert(**changes: Any) -> Mutation:
    def change(old: LayerConfig) -> LayerConfig:
        assert isinstance(old.mlp, MoeConfig)
        return replace(old, mlp=replace(old.mlp, expert=replace(old.mlp.expert, **changes)))

    return layers(change)


def rope(change: Callable[[RopeConfig], RopeConfig | None]) -> Mutation:
    def changed(old: LayerConfig) -> LayerConfig:
        kind = None if old.attention.rope is None else change(old.attention.rope)
        return replace(old, attention=replace(old.attention, rope=kind))

    return layers(changed)


def scaling(**changes: Any) -> Mutation:
    def changed(old: RopeConfig) -> RopeConfig:
        return old if old.scaling is None else replace(old, scaling=replace(old.scaling, **changes))

    return rope(changed)


def norms(**changes: Any) -> Mutation:
    def changed(config: ModelConfig) -> ModelConfig:
        assert config.final_norm is not None
        config = layers(lambda old: replace(old, norm=replace(old.norm, **changes)))(config)
        return replace(config, final_norm=replace(config.final_norm, **changes) if config.final_norm else None)

    return changed


def model(**changes: Any) -> Mutation:
    return lambda config: replace(config, **changes)


def windows(change: Callable[[int], int | None]) -> Mutation:
    def changed(old: LayerConfig) -> LayerConfig:
        window = old.attention.window
        return replace(old, attention=replace(old.attention, window=None if window is None else change(window)))

    return layers(changed)


def copied(**keys: str) -> WeightMutation:
    """Weights with leaves added: each named after an existing one, whose path differs in that part alone."""

    def change(weights: Weights) -> Weights:
        flat = flatten(weights)
        for new, old in keys.items():
            flat |= {path.replace(f".{old}.", f".{new}."): leaf for path, leaf in flat.items() if f".{old}." in path}
        return unflatten(flat)

    return change


def untied(weights: Weights) -> Weights:
    """An unembedding of its own: the embedding, moved by one token."""
    table = flatten(weights)["embedder.table"]
    return {**weights, "unembedder": {"table": np.roll(table, 1, axis=0)}}


def same_rope(config: ModelConfig) -> ModelConfig:
    """Every layer rotates as the last full-attention layer does."""
    full = next(old.attention.rope for old in config.layers if old.attention.window is None)
    return attention(rope=full)(config)


def all_rope(config: ModelConfig) -> ModelConfig:
    return attention(rope=config.layers[0].attention.rope)(config)


def all_windowed(config: ModelConfig) -> ModelConfig:
    window = next(old.attention.window for old in config.layers if old.attention.window is not None)
    return attention(window=window)(config)


def fewer_experts(config: ModelConfig) -> ModelConfig:
    old = config.layers[-1].mlp
    assert isinstance(old, MoeConfig)
    return moe(top_k=old.top_k - 1)(config)


def head_scale(config: ModelConfig) -> ModelConfig:
    return attention(scale=config.layers[0].attention.head_dim ** -0.5)(config)


def whole_heads(config: ModelConfig) -> ModelConfig:
    return rope(lambda old: replace(old, dim=config.layers[0].attention.head_dim))(config)


unscaled = rope(lambda old: replace(old, scaling=None))

CONFIGS: dict[str, tuple[str, Mutation]] = {
    "rope": ("llama2", attention(rope=None)),
    "linear scaling": ("llama_linear", unscaled),
    "dynamic scaling": ("llama_dynamic", unscaled),
    "dynamic scaling, its length": ("llama_dynamic", scaling(max_positions=47)),
    "llama3 scaling": ("llama31", unscaled),
    "llama3 scaling, high frequencies": ("llama31", scaling(high_freq_factor=2.0)),
    "llama3 scaling, low frequencies": ("llama31", scaling(low_freq_factor=2.0)),
    "yarn scaling": ("llama_yarn", unscaled),
    "yarn magnitude": ("llama_yarn", scaling(attention_factor=1.0)),
    "yarn ramp's start": ("gpt_oss", scaling(beta_fast=32.0)),
    "yarn ramp's end": ("llama_yarn", scaling(beta_slow=0.25)),
    "yarn in gpt-oss": ("gpt_oss", unscaled),
    "yarn bounds not truncated": ("gpt_oss", scaling(truncate=True)),
    "longrope": ("phi3_longrope", unscaled),
    "longrope magnitude": ("phi3_longrope", scaling(attention_factor=1.0)),
    "longrope long factors": ("phi3_longrope", scaling(divisors=(1.0, 1.1, 1.3, 1.6, 2.0, 2.5))),
    "scaling of global layers": ("gemma3", unscaled),
    "rope of local layers": ("gemma3", same_rope),
    "NoPE layers": ("smollm3", all_rope),
    "partial rotary": ("phi3", whole_heads),
    "partial rotary, half": ("glm4_moe", whole_heads),
    "learned positions' offset": ("opt", model(learned_positions=0)),
    "learned positions": ("opt_350m", model(learned_positions=None)),
    "window": ("mistral", attention(window=None)),
    "window's edge": ("mistral", windows(lambda window: window + 1)),
    "window of later layers": ("qwen2", attention(window=None)),
    "window of later layers alone": ("qwen2", all_windowed),
    "alternating window": ("gemma2", attention(window=None)),
    "alternating window's full layers": ("gemma2", all_windowed),
    "window 5:1": ("gemma3", attention(window=None)),
    "window with sinks": ("gpt_oss", attention(window=None)),
    "attention soft-cap": ("gemma2", attention(soft_cap=None)),
    "logit soft-cap": ("gemma2", model(logit_soft_cap=None)),
    "attention scale": ("gemma2", head_scale),
    "sinks": ("gpt_oss", attention(sinks=False)),
    "qk-norm": ("qwen3", attention(qk_norm=None)),
    "qk-norm in glm4": ("glm4_moe", attention(qk_norm=None)),
    "qk-norm over all heads": ("olmo2", attention(qk_norm=None)),
    "qkv biases": ("qwen2", attention(qkv_bias=False)),
    "output bias": ("llama_bias", attention(out_bias=False)),
    "mlp biases": ("llama_bias", mlp(bias=False)),
    "relu": ("opt", mlp(activation="gelu")),
    "gelu": ("opt_gelu", mlp(activation="relu")),
    "geglu": ("gemma2", mlp(activation="silu")),
    "norm offset": ("gemma2", norms(offset=0.0)),
    "LayerNorm's mean": ("cohere", norms(kind="rms")),
    "LayerNorm's bias": ("opt", norms(bias=False)),
    "final norm": ("llama2", model(final_norm=None)),
    "post-norms": ("gemma2", layer(placement="pre")),
    "norm behind the residual": ("opt_350m", layer(placement="post")),
    "embedding scale": ("gemma2", model(embed_scale=1.0)),
    "logit scale": ("cohere", model(logit_scale=1.0)),
    "embedding multiplier": ("granite", model(embed_scale=1.0)),
    "residual scale": ("granite", model(residual_scale=1.0)),
    "attention multiplier": ("granite", head_scale),
    "experts per token": ("mixtral", fewer_experts),
    "normalised experts": ("qwen3_moe", moe(normalise=False)),
    "experts not normalised": ("qwen3_moe_mixed", moe(normalise=True)),
    "normalised sigmoid experts": ("glm4_moe", moe(normalise=False)),
    "softmax over the chosen": ("gpt_oss", moe(router="softmax", normalise=False)),
    "sigmoid router": ("glm4_moe", moe(router="softmax")),
    "router bias": ("gpt_oss", moe(router_bias=False)),
    "router correction": ("glm4_moe", moe(correction_bias=False)),
    "router scale": ("glm4_moe", moe(scale=1.0)),
    "shared expert": ("glm4_moe", moe(shared=None)),
    "gated shared expert": ("qwen2_moe", moe(shared=None, shared_gate=False)),
    "shared expert's gate": ("qwen2_moe", moe(shared_gate=False)),
    "expert biases": ("gpt_oss", expert(bias=False)),
    "clamped swiglu": ("gpt_oss", expert(limit=float("inf"))),
    "gpt-oss's swiglu": ("gpt_oss", expert(activation="silu")),
    "untied embeddings": ("llama2", model(tied=True)),
}

WITH_WEIGHTS: dict[str, tuple[str, Mutation, WeightMutation]] = {
    "tied embeddings": ("llama32", model(tied=False), untied),
    "norm behind the branch": ("olmo2", layer(placement="pre"), copied(
        attention_norm="attention_post_norm", mlp_norm="mlp_post_norm")),
    "parallel block": ("cohere", layer(parallel=False), copied(mlp_norm="attention_norm")),
    "norm before the branch": ("llama2", layer(placement="post"), copied(
        attention_post_norm="attention_norm", mlp_post_norm="mlp_norm")),
}  # fmt: skip


def moved(golden: Golden, config: ModelConfig, weights: Weights) -> float:
    """How far the logits of a changed model are from the oracle's, at most."""
    logits = Text(config, restacked(weights, golden.config, config)).feed(golden.tokens)
    assert np.isfinite(logits).all()
    return float(np.abs(logits - golden.logits).max())


QUICK = (
    "linear scaling", "dynamic scaling", "llama3 scaling", "yarn scaling", "longrope", "NoPE layers", "window",
    "alternating window", "window with sinks", "attention soft-cap", "logit soft-cap", "sinks", "qk-norm", "qkv biases",
    "post-norms", "normalised experts", "sigmoid router", "shared expert", "untied embeddings",
)  # fmt: skip
"""One of each kind; the others are slow tests."""


@pytest.mark.parametrize(
    "feature", [pytest.param(feature, marks=() if feature in QUICK else pytest.mark.slow) for feature in CONFIGS]
)
def test_without_the_feature_logits_move(feature: str) -> None:
    case, mutation = CONFIGS[feature]
    golden = Golden(GOLDEN / case)
    config = mutation(golden.config)
    assert config != golden.config
    assert moved(golden, config, golden.weights()) >= MOVED


@pytest.mark.parametrize("feature", WITH_WEIGHTS)
def test_with_other_structure_logits_move(feature: str) -> None:
    case, mutation, change = WITH_WEIGHTS[feature]
    golden = Golden(GOLDEN / case)
    assert moved(golden, mutation(golden.config), change(golden.weights())) >= MOVED


def test_longrope_uses_the_factors_of_the_longest_context() -> None:
    """The original switches at its original length; a context that never leaves it has the short factors."""
    golden = Golden(GOLDEN / "phi3_longrope")
    found = golden.config.layers[0].attention.rope
    assert found is not None
    assert isinstance(found.scaling, RopeScaling)
    assert found.scaling.divisors == (1.5, 2.0, 2.7, 3.5, 5.0, 7.0)
