"""Qwen 2, 2.5 and 3: biases on queries, keys and values (2), or norms on queries and keys (3)."""

from dataclasses import replace

from ..config import AttentionConfig, MlpConfig, ModelConfig
from .base import Family, read_attention, read_layers, read_mlp, read_model, read_norm, read_window
from .fields import Fields
from .sources import LLAMA_NAMES, sources


def _config(fields: Fields, family: str, attention: AttentionConfig) -> ModelConfig:
    mlp, norm = read_mlp(fields), read_norm(fields)
    window = read_window(fields, default=4096) if fields.flag("use_sliding_window", False) else None
    kinds = fields.layer_types(fields.num_layers)
    first = fields.integer("max_window_layers", 28, minimum=0)

    def layer(i: int) -> tuple[AttentionConfig, MlpConfig]:
        sliding = i >= first if kinds is None else kinds[i] == "sliding_attention"
        return replace(attention, window=window if sliding else None), mlp

    return read_model(fields, family, read_layers(fields, layer, norm), norm)


def _qwen2(fields: Fields) -> ModelConfig:
    return _config(fields, "qwen2", read_attention(fields, num_kv_heads=32, qkv_bias=True))


def _qwen3(fields: Fields) -> ModelConfig:
    bias = fields.flag("attention_bias", False)
    attention = read_attention(fields, head_dim=128, num_kv_heads=32, qkv_bias=bias, out_bias=bias)
    return _config(fields, "qwen3", replace(attention, qk_norm="head"))


QWEN2 = Family("qwen2", ("qwen2",), _qwen2, lambda config: sources(LLAMA_NAMES))
QWEN3 = Family("qwen3", ("qwen3",), _qwen3, lambda config: sources(LLAMA_NAMES))
