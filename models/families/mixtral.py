"""Mixtral: Mistral's attention, eight experts of which each token runs two."""

from dataclasses import replace

from ..config import ModelConfig, MoeConfig
from .base import Family, read_attention, read_layers, read_mlp, read_model, read_norm, read_window
from .fields import Fields
from .sources import LLAMA_NAMES, TensorSource, sources

_BLOCK = "model.layers.{layer}.block_sparse_moe."
_NAMES = {
    "mlp.router.weight": _BLOCK + "gate.weight",
    "mlp.experts.gate": _BLOCK + "experts.{expert}.w1.weight",
    "mlp.experts.down": _BLOCK + "experts.{expert}.w2.weight",
    "mlp.experts.up": _BLOCK + "experts.{expert}.w3.weight",
}


def _config(fields: Fields) -> ModelConfig:
    attention = replace(read_attention(fields, theta=1_000_000.0, num_kv_heads=8), window=read_window(fields))
    moe = MoeConfig(
        num_experts=fields.integer("num_local_experts", 8),
        top_k=fields.integer("num_experts_per_tok", 2),
        expert=read_mlp(fields),
    )
    norm = read_norm(fields, eps=1e-5)
    return read_model(fields, "mixtral", read_layers(fields, lambda i: (attention, moe), norm), norm)


def _tensors(config: ModelConfig) -> dict[str, TensorSource]:
    return sources({**LLAMA_NAMES, **_NAMES})


MIXTRAL = Family("mixtral", ("mixtral",), _config, _tensors)
