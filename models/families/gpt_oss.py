"""gpt-oss: attention sinks, alternating windows, experts with biases and a clamped SwiGLU, YaRN."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..config import AttentionConfig, MlpConfig, ModelConfig, MoeConfig
from .base import Family, read_attention, read_layers, read_model, read_norm, read_window
from .fields import Fields
from .sources import LLAMA_NAMES, TensorSource, sources

_BLOCK = "model.layers.{layer}."
_EXPERTS = _BLOCK + "mlp.experts."


def _config(fields: Fields) -> ModelConfig:
    bias = fields.flag("attention_bias", True)
    attention = read_attention(fields, theta=150_000.0, head_dim=64, num_kv_heads=8, qkv_bias=bias, out_bias=bias)
    attention = replace(attention, sinks=True)
    limit = fields.number("swiglu_limit", 7.0)
    moe = MoeConfig(
        num_experts=fields.integer("num_local_experts"),
        top_k=fields.integer("num_experts_per_tok", fields.integer("experts_per_token", 4)),
        expert=MlpConfig(fields.integer("intermediate_size"), "swigluoai", bias=True, limit=limit),
        router="topk_softmax",
        router_bias=True,
    )
    num_layers = fields.num_layers
    window = read_window(fields, default=128)
    kinds = fields.layer_types(num_layers)

    def layer(i: int) -> tuple[AttentionConfig, MoeConfig]:
        sliding = i % 2 == 0 if kinds is None else kinds[i] == "sliding_attention"
        return replace(attention, window=window if sliding else None), moe

    norm = read_norm(fields, eps=1e-5)
    model = read_model(fields, "gpt_oss", read_layers(fields, layer, norm), norm)
    # Published files give the stretched context as it is.
    return replace(model, max_positions=fields.integer("max_position_embeddings"))


def _transposed(columns: slice) -> Callable[[np.ndarray], np.ndarray]:
    # Experts are stored [E, in, out], gate and up interleaved along out.
    return lambda block: block[..., columns].swapaxes(-1, -2)


def _tensors(config: ModelConfig) -> dict[str, TensorSource]:
    gate, up = slice(0, None, 2), slice(1, None, 2)
    return sources(
        {
            **LLAMA_NAMES,
            "attention.sinks": _BLOCK + "self_attn.sinks",
            "mlp.router.weight": _BLOCK + "mlp.router.weight",
            "mlp.router.bias": _BLOCK + "mlp.router.bias",
            "mlp.experts.gate": TensorSource(_EXPERTS + "gate_up_proj", view=_transposed(gate)),
            "mlp.experts.up": TensorSource(_EXPERTS + "gate_up_proj", view=_transposed(up)),
            "mlp.experts.down": TensorSource(_EXPERTS + "down_proj", view=_transposed(slice(None))),
            "mlp.experts.gate_bias": TensorSource(_EXPERTS + "gate_up_proj_bias", view=lambda block: block[..., gate]),
            "mlp.experts.up_bias": TensorSource(_EXPERTS + "gate_up_proj_bias", view=lambda block: block[..., up]),
            "mlp.experts.down_bias": _EXPERTS + "down_proj_bias",
        }
    )


GPT_OSS = Family("gpt_oss", ("gpt_oss",), _config, _tensors)
