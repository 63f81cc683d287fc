"""Gemma 2 and 3 (text): norms on both sides of each branch, alternating windows, scaled embeddings."""

from dataclasses import replace
from typing import Literal

from ..config import LayerConfig, ModelConfig
from .base import Family, read_attention, read_mlp, read_norm
from .fields import Fields
from .rope_fields import context_length, read_rope
from .sources import LLAMA_NAMES, TensorSource, sources

_BLOCK = "model.layers.{layer}."
_NAMES = {
    "attention_post_norm.scale": _BLOCK + "post_attention_layernorm.weight",
    "mlp_norm.scale": _BLOCK + "pre_feedforward_layernorm.weight",
    "mlp_post_norm.scale": _BLOCK + "post_feedforward_layernorm.weight",
}
Kind = Literal["full_attention", "sliding_attention"]


def _config(fields: Fields, family: str, kinds: tuple[Kind, ...], *, local_theta: float | None) -> ModelConfig:
    attention = read_attention(fields, theta=1_000_000.0 if local_theta else 10_000.0)
    attention = replace(
        attention,
        scale=fields.number("query_pre_attn_scalar", 256) ** -0.5,
        soft_cap=fields.optional_number("attn_logit_softcapping"),
        qk_norm="head" if local_theta else None,
    )
    sliding = replace(attention, window=fields.integer("sliding_window", 4096))
    if local_theta is not None:
        # Only the full-attention layers stretch their positions.
        own = fields.table("rope_parameters")
        local = own if own is not None else Fields({"rope_theta": local_theta}, fields.source)
        rope = read_rope(
            Fields({"rope_parameters": local.values}, fields.source), attention.head_dim, layer_type="sliding_attention"
        )
        sliding = replace(sliding, rope=rope)
    mlp = replace(read_mlp(fields), activation=fields.activation("hidden_activation", "gelu_pytorch_tanh"))
    norm = read_norm(fields, offset=1.0)
    layers = tuple(
        LayerConfig(sliding if kind == "sliding_attention" else attention, mlp, norm, "sandwich") for kind in kinds
    )
    width = fields.integer("hidden_size")
    return ModelConfig(
        family=family,
        vocab_size=fields.integer("vocab_size", 262_208 if local_theta else 256_000),
        embed_dim=width,
        max_positions=context_length(fields, extends=False, default=131_072 if local_theta else 8192),
        layers=layers,
        final_norm=norm,
        tied=fields.flag("tie_word_embeddings", True),
        embed_scale=width**0.5,
        logit_soft_cap=fields.optional_number("final_logit_softcapping"),
    )


def _kinds(fields: Fields, pattern: int) -> tuple[Kind, ...]:
    num_layers = fields.num_layers
    return fields.layer_types(num_layers) or tuple(
        "sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(num_layers)
    )


def _gemma2(fields: Fields) -> ModelConfig:
    defaults = {"head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4}
    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    fields = Fields(defaults | caps | dict(fields.values), fields.source)
    return _config(fields, "gemma2", _kinds(fields, 2), local_theta=None)


def _gemma3(fields: Fields) -> ModelConfig:
    # The published text configurations leave out whatever equals the architecture's default.
    defaults = {"head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4}
    fields = Fields(defaults | dict(fields.values), fields.source)
    pattern = fields.integer("sliding_window_pattern", fields.integer("_sliding_window_pattern", 6))
    local_theta = fields.number("rope_local_base_freq", 10_000.0)
    return _config(fields, "gemma3", _kinds(fields, pattern), local_theta=local_theta)


def _gemma3_multimodal(fields: Fields) -> ModelConfig:
    text = fields.table("text_config")
    if text is None:
        raise fields.error("text_config", None, "the configuration of the language model")
    return replace(_gemma3(text), family="gemma3_multimodal")


def _tensors(config: ModelConfig) -> dict[str, TensorSource]:
    return sources({**LLAMA_NAMES, **_NAMES})


def _language_tensors(config: ModelConfig) -> dict[str, TensorSource]:
    return {key: replace(source, name=f"language_model.{source.name}") for key, source in _tensors(config).items()}


GEMMA2 = Family("gemma2", ("gemma2",), _gemma2, _tensors)
GEMMA3 = Family("gemma3", ("gemma3_text",), _gemma3, _tensors)
GEMMA3_MULTIMODAL = Family(
    "gemma3_multimodal",
    ("gemma3",),
    _gemma3_multimodal,
    _language_tensors,
    ignored=(r"vision_tower\..*", r"multi_modal_projector\..*"),
)
"""The language model inside a published image-and-text checkpoint."""
