"""Blocks that run attention and feed-forward side by side: PaLM (for planning) and Cohere's Command R."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..config import LayerConfig, ModelConfig, NormConfig
from .base import Family, read_attention, read_mlp, read_model
from .fields import Fields
from .sources import LLAMA_NAMES, TensorSource, sources


def _config(fields: Fields, family: str) -> ModelConfig:
    bias = fields.flag("attention_bias", False)
    attention = read_attention(fields, qkv_bias=bias, out_bias=bias)
    norm = NormConfig("layer", fields.number("layer_norm_eps", 1e-5))
    layer = LayerConfig(attention, read_mlp(fields), norm, parallel=True)
    return read_model(fields, family, (layer,) * fields.num_layers, norm, tied=True)


def _palm(fields: Fields) -> ModelConfig:
    model = _config(fields, "palm")
    return replace(model, logit_scale=model.embed_dim**-0.5)


def _cohere(fields: Fields) -> ModelConfig:
    if fields.flag("use_qk_norm", False):
        raise fields.error("use_qk_norm", True, "false: Command R+ normalises each head with weights of its own")
    return replace(_config(fields, "cohere"), logit_scale=fields.number("logit_scale", 0.0625))


def _halves(head_dim: int) -> Callable[[np.ndarray], np.ndarray]:
    """Heads whose rotation pairs neighbours, in the order of heads whose rotation pairs halves."""
    return lambda block: block.reshape(-1, head_dim // 2, 2, *block.shape[1:]).swapaxes(1, 2)


def _cohere_tensors(config: ModelConfig) -> dict[str, TensorSource]:
    view = _halves(config.layers[0].attention.head_dim)
    paired = [f"attention.{x}.{part}" for x in "qk" for part in ("weight", "bias")]
    return sources({**LLAMA_NAMES, **{key: TensorSource(LLAMA_NAMES[key], view=view) for key in paired}})


PALM = Family("palm", ("palm",), _palm, lambda config: sources(LLAMA_NAMES))
COHERE = Family("cohere", ("cohere",), _cohere, _cohere_tensors)
