"""OLMo 2: norms behind the branches instead of before them, and on whole query and key projections."""

from dataclasses import replace

from ..config import LayerConfig, ModelConfig
from .base import Family, read_attention, read_mlp, read_model, read_norm
from .fields import Fields
from .sources import LLAMA_NAMES, TensorSource, sources

_BLOCK = "model.layers.{layer}."
_NAMES = {
    "attention_post_norm.scale": _BLOCK + "post_attention_layernorm.weight",
    "mlp_post_norm.scale": _BLOCK + "post_feedforward_layernorm.weight",
}


def _config(fields: Fields) -> ModelConfig:
    bias = fields.flag("attention_bias", False)
    attention = replace(read_attention(fields, qkv_bias=bias, out_bias=bias), qk_norm="full")
    norm = read_norm(fields, eps=1e-5)
    layer = LayerConfig(attention, read_mlp(fields), norm, "post")
    return read_model(fields, "olmo2", (layer,) * fields.num_layers, norm)


def _tensors(config: ModelConfig) -> dict[str, TensorSource]:
    return sources({**LLAMA_NAMES, **_NAMES})


OLMO2 = Family("olmo2", ("olmo2",), _config, _tensors)
