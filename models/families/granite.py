"""Granite 3: Llama's block with a multiplier on embeddings, branches, attention scores and logits."""

from dataclasses import replace

from ..config import ModelConfig
from .base import Family, read_attention, read_layers, read_mlp, read_model, read_norm
from .fields import Fields
from .sources import LLAMA_NAMES, sources


def _config(fields: Fields) -> ModelConfig:
    bias = fields.flag("attention_bias", False)
    attention = read_attention(fields, qkv_bias=bias, out_bias=bias)
    attention = replace(attention, scale=fields.number("attention_multiplier", 1.0))
    mlp, norm = read_mlp(fields, bias=fields.flag("mlp_bias", False)), read_norm(fields)
    model = read_model(fields, "granite", read_layers(fields, lambda i: (attention, mlp), norm), norm)
    return replace(
        model,
        embed_scale=fields.number("embedding_multiplier", 1.0),
        residual_scale=fields.number("residual_multiplier", 1.0),
        logit_scale=1 / fields.number("logits_scaling", 1.0),
    )


GRANITE = Family("granite", ("granite",), _config, lambda config: sources(LLAMA_NAMES))
