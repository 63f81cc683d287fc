"""The config.json of a smaller model: what its own family reads it from."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...backends.errors import UnsupportedError
from ..config import MlpConfig, ModelConfig
from ..errors import ConfigError
from ..families import config_from_hf

_LISTS = ("layer_types", "no_rope_layers")
"""Fields with an entry for each layer."""


def smaller_hf(hf: Mapping[str, Any], old: ModelConfig, new: ModelConfig, kept: Sequence[int]) -> dict[str, Any]:
    """The configuration of `new`, which is `old` with fewer layers, heads or channels.

    Args:
        hf: of the old model, of text alone.
        kept: layers of the old model that stay.

    Raises:
        UnsupportedError: the family's configuration has no words for it.
    """
    made = dict(hf)
    was, now = old.layers[kept[0]], new.layers[0]
    if was.attention.num_heads != now.attention.num_heads:
        made["num_attention_heads"] = now.attention.num_heads
        made["num_key_value_heads"] = now.attention.num_kv_heads
        made["head_dim"] = now.attention.head_dim  # otherwise taken for the width by the number of heads
    if isinstance(was.mlp, MlpConfig) and isinstance(now.mlp, MlpConfig) and was.mlp.dim != now.mlp.dim:
        made["ffn_dim" if "ffn_dim" in hf else "intermediate_size"] = now.mlp.dim
    if new.num_layers != old.num_layers:
        made["num_hidden_layers"] = new.num_layers
        windows = [layer.attention.window for layer in new.layers]
        if len({layer.attention.window for layer in old.layers}) > 1:
            made["layer_types"] = ["full_attention" if window is None else "sliding_attention" for window in windows]
        if len({layer.attention.rope is None for layer in old.layers}) > 1:
            made["no_rope_layers"] = [int(layer.attention.rope is not None) for layer in new.layers]
        for name in _LISTS:
            if isinstance(hf.get(name), list) and len(hf[name]) == old.num_layers:
                made[name] = [hf[name][layer] for layer in kept]
    if not describes(made, new):
        raise UnsupportedError(
            f"family {old.family}: its configuration has no words for the model that would be left; prune something "
            "else of it (single weights always can be)"
        )
    return made


def describes(hf: Mapping[str, Any], config: ModelConfig) -> bool:
    """Whether this is a model's configuration in the words of its family."""
    try:
        return config_from_hf(hf, source="config.json") == config
    except ConfigError:
        return False
