"""Phi-3: Llama's block with queries, keys and values in one tensor, gate and up in another, and LongRoPE."""

from dataclasses import replace

from ..config import MlpConfig, ModelConfig
from .base import Family, read_attention, read_layers, read_mlp, read_model, read_norm, read_window
from .fields import Fields
from .sources import LLAMA_NAMES, TensorSource, sources

_QKV = "model.layers.{layer}.self_attn.qkv_proj.weight"
_GATE_UP = "model.layers.{layer}.mlp.gate_up_proj.weight"


def _config(fields: Fields) -> ModelConfig:
    attention = replace(read_attention(fields), window=read_window(fields))
    mlp, norm = read_mlp(fields), read_norm(fields, eps=1e-5)
    return read_model(fields, "phi3", read_layers(fields, lambda i: (attention, mlp), norm), norm)


def _tensors(config: ModelConfig) -> dict[str, TensorSource]:
    layer = config.layers[0]
    assert isinstance(layer.mlp, MlpConfig)
    queries = layer.attention.num_heads * layer.attention.head_dim
    keys = layer.attention.num_kv_heads * layer.attention.head_dim
    return sources(
        {
            **LLAMA_NAMES,
            "attention.q.weight": TensorSource(_QKV, 0, queries),
            "attention.k.weight": TensorSource(_QKV, queries, keys),
            "attention.v.weight": TensorSource(_QKV, queries + keys, keys),
            "mlp.gate.weight": TensorSource(_GATE_UP, 0, layer.mlp.dim),
            "mlp.up.weight": TensorSource(_GATE_UP, layer.mlp.dim, layer.mlp.dim),
        }
    )


PHI3 = Family("phi3", ("phi3",), _config, _tensors)
