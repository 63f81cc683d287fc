"""OPT: LayerNorm, learned positions, ungated ReLU or GELU; the 350m model normalises behind the residual."""

from ..config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig, NormConfig
from .base import Family
from .fields import Fields
from .sources import TensorSource, sources

_MODEL = "model.decoder."
_BLOCK = _MODEL + "layers.{layer}."


def _config(fields: Fields) -> ModelConfig:
    width, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if width % num_heads:
        raise fields.error("hidden_size", width, f"a multiple of {num_heads} attention heads")
    bias = fields.flag("enable_bias", True)
    head_dim = width // num_heads
    attention = AttentionConfig(
        num_heads, num_heads, head_dim, scale=head_dim**-0.5, rope=None, qkv_bias=bias, out_bias=bias
    )
    activation = fields.activation("activation_function", "relu")
    mlp = MlpConfig(fields.integer("ffn_dim"), activation, gated=False, bias=bias)
    norm = NormConfig("layer", 1e-5, bias=True)
    before = fields.flag("do_layer_norm_before", True)
    layer = LayerConfig(attention, mlp, norm, "pre" if before else "residual")
    embed_in_dim = fields.integer("word_embed_proj_dim", width)
    return ModelConfig(
        family="opt",
        vocab_size=fields.integer("vocab_size"),
        embed_dim=width,
        max_positions=fields.integer("max_position_embeddings"),
        layers=(layer,) * fields.num_layers,
        final_norm=norm if before and not fields.flag("_remove_final_layer_norm", False) else None,
        tied=fields.flag("tie_word_embeddings", True),
        embed_in_dim=None if embed_in_dim == width else embed_in_dim,
        learned_positions=2,
    )


def _tensors(config: ModelConfig) -> dict[str, TensorSource]:
    # Both placements call the norms of a layer by the same names.
    norms = (
        ("attention_norm", "mlp_norm")
        if config.layers[0].placement == "pre"
        else (
            "attention_post_norm",
            "mlp_post_norm",
        )
    )
    names = {
        "embedder.table": _MODEL + "embed_tokens.weight",
        "unembedder.table": "lm_head.weight",
        "positions.table": _MODEL + "embed_positions.weight",
        "project_in.weight": _MODEL + "project_in.weight",
        "project_out.weight": _MODEL + "project_out.weight",
    }
    for ours, theirs in (("scale", "weight"), ("bias", "bias")):
        names |= {
            f"final_norm.{ours}": f"{_MODEL}final_layer_norm.{theirs}",
            f"{norms[0]}.{ours}": f"{_BLOCK}self_attn_layer_norm.{theirs}",
            f"{norms[1]}.{ours}": f"{_BLOCK}final_layer_norm.{theirs}",
        }
    for part in ("weight", "bias"):
        names |= {f"attention.{x}.{part}": f"{_BLOCK}self_attn.{x}_proj.{part}" for x in "qkv"}
        names |= {
            f"attention.o.{part}": f"{_BLOCK}self_attn.out_proj.{part}",
            f"mlp.up.{part}": f"{_BLOCK}fc1.{part}",
            f"mlp.down.{part}": f"{_BLOCK}fc2.{part}",
        }
    return sources(names)


OPT = Family("opt", ("opt",), _config, _tensors)
