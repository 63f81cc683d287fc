"""Llama 2, 3, 3.1, 3.2 and what shares their block: SmolLM2, Mistral."""

from dataclasses import replace

from ..config import ModelConfig
from .base import Family, read_attention, read_layers, read_mlp, read_model, read_norm, read_window
from .fields import Fields
from .sources import LLAMA_NAMES, sources


def _config(fields: Fields) -> ModelConfig:
    bias = fields.flag("attention_bias", False)
    attention = read_attention(fields, qkv_bias=bias, out_bias=bias)
    mlp = read_mlp(fields, bias=fields.flag("mlp_bias", False))
    norm = read_norm(fields)
    return read_model(fields, "llama", read_layers(fields, lambda i: (attention, mlp), norm), norm)


def _mistral(fields: Fields) -> ModelConfig:
    attention = replace(read_attention(fields, num_kv_heads=8), window=read_window(fields))
    mlp, norm = read_mlp(fields), read_norm(fields)
    return read_model(fields, "mistral", read_layers(fields, lambda i: (attention, mlp), norm), norm)


LLAMA = Family("llama", ("llama",), _config, lambda config: sources(LLAMA_NAMES))
MISTRAL = Family("mistral", ("mistral",), _mistral, lambda config: sources(LLAMA_NAMES))
