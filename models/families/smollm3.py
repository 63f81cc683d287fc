"""SmolLM3: Llama's block, with layers that leave positions out."""

from dataclasses import replace

from ..config import AttentionConfig, MlpConfig, ModelConfig
from .base import Family, read_attention, read_layers, read_mlp, read_model, read_norm, read_window
from .fields import Fields
from .sources import LLAMA_NAMES, sources


def _config(fields: Fields) -> ModelConfig:
    bias = fields.flag("attention_bias", False)
    attention = read_attention(fields, theta=2_000_000.0, num_kv_heads=4, qkv_bias=bias, out_bias=bias)
    mlp = read_mlp(fields, bias=fields.flag("mlp_bias", False))
    num_layers = fields.num_layers
    interval = fields.integer("no_rope_layer_interval", 4)
    # The list has a 1 where positions are used, despite its name.
    uses_rope = fields.integers("no_rope_layers") or tuple(int((i + 1) % interval != 0) for i in range(num_layers))
    if len(uses_rope) != num_layers:
        raise fields.error("no_rope_layers", list(uses_rope), f"{num_layers} entries")
    window = read_window(fields) if fields.flag("use_sliding_window", False) else None
    kinds = fields.layer_types(num_layers)

    def layer(i: int) -> tuple[AttentionConfig, MlpConfig]:
        sliding = not uses_rope[i] if kinds is None else kinds[i] == "sliding_attention"
        kind = replace(attention, rope=attention.rope if uses_rope[i] else None, window=window if sliding else None)
        return kind, mlp

    norm = read_norm(fields)
    return read_model(fields, "smollm3", read_layers(fields, layer, norm), norm, tied=True)


SMOLLM3 = Family("smollm3", ("smollm3",), _config, lambda config: sources(LLAMA_NAMES))
