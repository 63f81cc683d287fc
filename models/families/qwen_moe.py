"""Qwen's mixtures of experts: Qwen2-MoE with a gated shared expert, Qwen3-MoE without."""

from dataclasses import replace

from ..config import AttentionConfig, MlpConfig, ModelConfig, MoeConfig
from .base import Family, read_attention, read_layers, read_mlp, read_model, read_norm, read_window
from .fields import Fields
from .sources import LLAMA_NAMES, TensorSource, sources

_SHARED = {
    f"mlp.shared.{x}.weight": f"model.layers.{{layer}}.mlp.shared_expert.{x}_proj.weight"
    for x in ("gate", "up", "down")
} | {"mlp.shared_gate.weight": "model.layers.{layer}.mlp.shared_expert_gate.weight"}


def _config(fields: Fields, family: str, attention: AttentionConfig, shared: MlpConfig | None) -> ModelConfig:
    norm, dense = read_norm(fields), read_mlp(fields)
    moe = MoeConfig(
        num_experts=fields.integer("num_experts", fields.integer("num_local_experts", 128)),
        top_k=fields.integer("num_experts_per_tok"),
        expert=read_mlp(fields, "moe_intermediate_size"),
        normalise=fields.flag("norm_topk_prob", False),
        shared=shared,
        shared_gate=shared is not None,
    )
    only_dense, every = fields.integers("mlp_only_layers"), fields.integer("decoder_sparse_step", 1)

    def layer(i: int) -> tuple[AttentionConfig, MlpConfig | MoeConfig]:
        return attention, moe if i not in only_dense and (i + 1) % every == 0 else dense

    return read_model(fields, family, read_layers(fields, layer, norm), norm)


def _qwen2_moe(fields: Fields) -> ModelConfig:
    if fields.flag("use_sliding_window", False):
        raise fields.error("use_sliding_window", True, "false: no published Qwen2-MoE slides its window")
    attention = read_attention(fields, num_kv_heads=16, qkv_bias=fields.flag("qkv_bias", True))
    return _config(fields, "qwen2_moe", attention, read_mlp(fields, "shared_expert_intermediate_size"))


def _qwen3_moe(fields: Fields) -> ModelConfig:
    bias = fields.flag("attention_bias", False)
    attention = replace(read_attention(fields, num_kv_heads=4, qkv_bias=bias, out_bias=bias), qk_norm="head")
    window = read_window(fields) if fields.flag("use_sliding_window", False) else None
    return _config(fields, "qwen3_moe", replace(attention, window=window), None)


def _tensors(config: ModelConfig) -> dict[str, TensorSource]:
    return sources({**LLAMA_NAMES, **_SHARED})


QWEN2_MOE = Family("qwen2_moe", ("qwen2_moe",), _qwen2_moe, _tensors)
QWEN3_MOE = Family("qwen3_moe", ("qwen3_moe",), _qwen3_moe, _tensors)
