"""GLM-4.5: sigmoid router with a correction bias, a shared expert, half-rotated heads."""

from dataclasses import replace

from ..config import AttentionConfig, MlpConfig, ModelConfig, MoeConfig
from .base import Family, read_attention, read_layers, read_mlp, read_model, read_norm
from .fields import Fields
from .rope_fields import read_rope
from .sources import LLAMA_NAMES, TensorSource, sources

_BLOCK = "model.layers.{layer}."


def _config(fields: Fields) -> ModelConfig:
    if fields.integer("n_group", 1) != 1:
        raise fields.error("n_group", fields.values["n_group"], "1: routing inside groups of experts is not built")
    attention = read_attention(fields, num_kv_heads=8, qkv_bias=fields.flag("attention_bias", False))
    rope = read_rope(fields, attention.head_dim, partial=0.5)
    attention = replace(attention, rope=rope, qk_norm="head" if fields.flag("use_qk_norm", False) else None)
    dense, expert = read_mlp(fields), read_mlp(fields, "moe_intermediate_size")
    num_shared = fields.integer("n_shared_experts", 1, minimum=0)
    moe = MoeConfig(
        num_experts=fields.integer("n_routed_experts"),
        top_k=fields.integer("num_experts_per_tok"),
        expert=expert,
        router="sigmoid",
        normalise=fields.flag("norm_topk_prob", True),
        correction_bias=True,
        scale=fields.number("routed_scaling_factor", 1.0),
        shared=replace(expert, dim=expert.dim * num_shared) if num_shared else None,
    )
    first = fields.integer("first_k_dense_replace", 1, minimum=0)

    def layer(i: int) -> tuple[AttentionConfig, MlpConfig | MoeConfig]:
        return attention, dense if i < first else moe

    norm = read_norm(fields, eps=1e-5)
    return read_model(fields, "glm4_moe", read_layers(fields, layer, norm), norm)


def _tensors(config: ModelConfig) -> dict[str, TensorSource]:
    shared = {f"mlp.shared.{x}.weight": f"{_BLOCK}mlp.shared_experts.{x}_proj.weight" for x in ("gate", "up", "down")}
    return sources({**LLAMA_NAMES, **shared, "mlp.correction": _BLOCK + "mlp.gate.e_score_correction_bias"})


# Published files carry a last layer for predicting two tokens ahead.
GLM4_MOE = Family("glm4_moe", ("glm4_moe",), _config, _tensors, ignored=(r"model\.layers\.{num_layers}\..*",))
