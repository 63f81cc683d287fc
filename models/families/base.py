"""What a family is, and the decoder that most families vary."""

from collections.abc import Callable
from dataclasses import dataclass

from ..config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig, MoeConfig, NormConfig
from ..rope import RopeConfig
from .fields import Fields
from .rope_fields import context_length, read_rope
from .sources import TensorSource


@dataclass(frozen=True)
class Family:
    """One model family.

    Args:
        name: what ModelConfig.family says.
        model_types: values of `model_type` in config.json that this family reads.
        config: translates the configuration.
        tensors: names the checkpoint tensor behind each leaf, by its key (WeightSpec.key).
        ignored: patterns of tensor names that checkpoints carry and inference does not need; `{num_layers}` stands for
            the number of the layer behind the last.
    """

    name: str
    model_types: tuple[str, ...]
    config: Callable[[Fields], ModelConfig]
    tensors: Callable[[ModelConfig], dict[str, TensorSource]]
    ignored: tuple[str, ...] = ()


def read_norm(fields: Fields, *, eps: float = 1e-6, offset: float = 0.0) -> NormConfig:
    """RMSNorm with `rms_norm_eps`."""
    return NormConfig("rms", fields.number("rms_norm_eps", eps), offset)


def read_mlp(fields: Fields, field: str = "intermediate_size", *, bias: bool = False) -> MlpConfig:
    """A gated feed-forward layer."""
    return MlpConfig(fields.integer(field), fields.activation("hidden_act"), bias=bias)


def read_attention(
    fields: Fields,
    *,
    rope: RopeConfig | None = None,
    theta: float = 10_000.0,
    head_dim: int | None = None,
    num_kv_heads: int | None = None,
    qkv_bias: bool = False,
    out_bias: bool = False,
) -> AttentionConfig:
    """Grouped-query attention with the usual field names and scale 1 / sqrt(H)."""
    width, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    num_kv_heads = fields.integer("num_key_value_heads", num_kv_heads or num_heads)
    if num_heads % num_kv_heads:
        raise fields.error("num_key_value_heads", num_kv_heads, f"a divisor of {num_heads} attention heads")
    if head_dim is None and fields.values.get("head_dim") is None and width % num_heads:
        raise fields.error("hidden_size", width, f"a multiple of {num_heads} attention heads, or a head_dim")
    head_dim = fields.integer("head_dim", head_dim or width // num_heads)
    return AttentionConfig(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
        rope=rope or read_rope(fields, head_dim, theta=theta),
        qkv_bias=qkv_bias,
        out_bias=out_bias,
    )


def read_layers(
    fields: Fields, layer: Callable[[int], tuple[AttentionConfig, MlpConfig | MoeConfig]], norm: NormConfig
) -> tuple[LayerConfig, ...]:
    """Pre-norm layers, each with the attention and feed-forward that `layer` gives for its number."""
    return tuple(LayerConfig(*layer(i), norm=norm) for i in range(fields.num_layers))


def read_model(
    fields: Fields, family: str, layers: tuple[LayerConfig, ...], norm: NormConfig, *, tied: bool = False
) -> ModelConfig:
    """The model around its layers: vocabulary, width, context, tying."""
    return ModelConfig(
        family=family,
        vocab_size=fields.integer("vocab_size"),
        embed_dim=fields.integer("hidden_size"),
        max_positions=context_length(fields),
        layers=layers,
        final_norm=norm,
        tied=fields.flag("tie_word_embeddings", tied),
    )


def read_window(fields: Fields, *, default: int | None = None) -> int | None:
    """`sliding_window`: how many key positions a query sees; absent, null and 0 are all of them."""
    if fields.values.get("sliding_window") in (None, 0):
        return default
    return fields.integer("sliding_window")
