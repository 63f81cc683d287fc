"""GGUF metadata as the config.json that Hugging Face would have for the model."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..rope import RopeConfig, RopeScaling, frequencies
from .gguf_names import architecture_named


class _Fields:
    """Typed access to the metadata of one architecture, with errors that name the key."""

    def __init__(self, metadata: Mapping[str, Any], arch: str, source: str) -> None:
        self.metadata = metadata
        self.arch = arch
        self.source = source

    def whole(self, key: str, default: int | None = None, *, most: int = 2**20) -> int:
        found = self._get(key, default)
        if isinstance(found, list) and found and all(entry == found[0] for entry in found):
            found = found[0]  # some converters write one number per layer
        if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= most:
            raise self._wrong(key, found, f"a whole number up to {most} (the same for every layer)")
        return found

    def real(self, key: str, default: float | None = None) -> float:
        found = self._get(key, default)
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            raise self._wrong(key, found, "a finite number")
        return float(np.format_float_scientific(np.float32(found)))  # 1e-05, not 9.99999974e-06

    def has(self, key: str) -> bool:
        return f"{self.arch}.{key}" in self.metadata

    def get(self, key: str) -> Any:
        return self.metadata.get(f"{self.arch}.{key}")

    def _get(self, key: str, default: float | None) -> Any:
        found = self.get(key)
        if found is None and default is None:
            raise self._wrong(key, "nothing", "this key; convert the model again with a current converter")
        return default if found is None else found

    def _wrong(self, key: str, found: object, expected: str) -> ConfigError:
        return ConfigError(f"{self.source}: {self.arch}.{key}: found {str(found)[:80]}, expected {expected}")


def config_from_gguf(
    metadata: Mapping[str, Any],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    rope_factors: Mapping[str, list[float]],
    source: str,
) -> dict[str, Any]:
    """A Hugging Face style configuration.

    Args:
        metadata: the file's keys and values.
        shapes: shape of every GGUF tensor, by its GGUF name; the vocabulary and the biases show there alone.
        rope_factors: contents of rope_freqs.weight, rope_factors_long.weight and rope_factors_short.weight, if present.
        source: the file, for errors.

    Raises:
        UnknownArchitectureError: general.architecture names none that is known.
        ConfigError: a key is missing or holds what it must not.
    """
    arch = architecture_named(metadata.get("general.architecture"), source=source)
    fields = _Fields(metadata, arch.name, source)
    heads = fields.whole("attention.head_count")
    hidden = fields.whole("embedding_length")
    table = shapes.get("token_embd.weight")
    if table is None or len(table) != 2 or table[1] != hidden or not heads:
        raise ConfigError(
            f"{source}: {arch.name}.embedding_length and attention.head_count: found {hidden} and {heads}, expected "
            f"those of tensor 'token_embd.weight' ({'missing' if table is None else list(table)}); fetch it again"
        )
    config: dict[str, Any] = {
        "model_type": arch.model_types[0],
        "vocab_size": table[0],
        "hidden_size": hidden,
        "intermediate_size": fields.whole("feed_forward_length", 0),
        "num_hidden_layers": fields.whole("block_count", most=len(shapes)),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.whole("attention.head_count_kv", heads),
        "head_dim": fields.whole("attention.key_length", hidden // heads),
        "max_position_embeddings": fields.whole("context_length", most=2**31),
        "rms_norm_eps": fields.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": fields.real("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(fields, rope_factors),
        "tie_word_embeddings": "output.weight" not in shapes,
        "attention_bias": "blk.0.attn_q.bias" in shapes,
        "mlp_bias": "blk.0.ffn_gate.bias" in shapes or "blk.0.ffn_down.bias" in shapes,
        "hidden_act": "silu",
    }
    for name in ("bos", "eos", "padding"):
        token = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(token, int):
            config["pad_token_id" if name == "padding" else f"{name}_token_id"] = token
    _ADD[arch.name](fields, config)
    return config


def _rope_scaling(fields: _Fields, factors: Mapping[str, list[float]]) -> dict[str, Any] | None:
    kind = fields.get("rope.scaling.type")
    if "rope_freqs.weight" in factors:
        return _llama3(fields, factors["rope_freqs.weight"])
    if "rope_factors_long.weight" in factors and "rope_factors_short.weight" in factors:
        return {
            "rope_type": "longrope",
            "long_factor": factors["rope_factors_long.weight"],
            "short_factor": factors["rope_factors_short.weight"],
        }
    if kind in (None, "none"):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": fields.real("rope.scaling.factor")}
    if kind == "yarn":
        scaling: dict[str, Any] = {
            "rope_type": "yarn",
            "factor": fields.real("rope.scaling.factor"),
            "original_max_position_embeddings": fields.whole("rope.scaling.original_context_length", most=2**31),
        }
        for key, name in (("attn_factor", "attention_factor"), ("beta_fast", "beta_fast"), ("beta_slow", "beta_slow")):
            if fields.has(f"rope.scaling.yarn_{key}"):
                scaling[name] = fields.real(f"rope.scaling.yarn_{key}")
        return scaling
    raise ConfigError(
        f"{fields.source}: {fields.arch}.rope.scaling.type: found {kind!r}, expected none, linear, yarn, or the "
        "tensors rope_freqs.weight or rope_factors_long.weight with rope_factors_short.weight"
    )


def _llama3(fields: _Fields, factors: list[float]) -> dict[str, Any]:
    """The parameters behind rope_freqs.weight: llama.cpp stores only the factor of each frequency.

    The published models all use bounds of 1 and 4 with an original length of 8192; if these do not give the stored
    factors, the factors themselves are passed on, as longrope with nothing else scaled.
    """
    scaling: dict[str, Any] = {
        "rope_type": "llama3",
        "factor": max(factors),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    width = 2 * len(factors)
    if np.allclose(llama3_factors(scaling, fields.real("rope.freq_base", 10000.0), width), factors, rtol=1e-5):
        return scaling
    return {
        "rope_type": "longrope",
        "long_factor": factors,
        "short_factor": factors,
        "attention_factor": 1.0,
        "original_max_position_embeddings": fields.whole("context_length", most=2**31),
    }


def llama3_factors(scaling: Mapping[str, Any], theta: float, width: int) -> np.ndarray:
    """What llama3 scaling divides each of the width / 2 frequencies by."""
    llama3 = RopeScaling(
        "llama3",
        factor=scaling["factor"],
        original_positions=scaling["original_max_position_embeddings"],
        low_freq_factor=scaling["low_freq_factor"],
        high_freq_factor=scaling["high_freq_factor"],
    )
    return frequencies(RopeConfig(width, theta)) / frequencies(RopeConfig(width, theta, llama3))


def _llama(fields: _Fields, config: dict[str, Any]) -> None:
    config["head_dim"] = fields.whole("attention.key_length", fields.whole("rope.dimension_count", config["head_dim"]))
    if fields.whole("expert_count", 0, most=2**13):
        config["model_type"] = "mixtral"
        config["num_local_experts"] = fields.whole("expert_count", most=2**13)
        config["num_experts_per_tok"] = fields.whole("expert_used_count")


def _smollm3(fields: _Fields, config: dict[str, Any]) -> None:
    interval = 4  # not in the metadata; llama.cpp has the same constant
    config["no_rope_layer_interval"] = interval
    config["no_rope_layers"] = [int((i + 1) % interval != 0) for i in range(config["num_hidden_layers"])]


def _qwen2(fields: _Fields, config: dict[str, Any]) -> None:
    config["use_sliding_window"] = False
    config["attention_bias"] = True


def _qwen3(fields: _Fields, config: dict[str, Any]) -> None:
    config["use_sliding_window"] = False


def _qwen3moe(fields: _Fields, config: dict[str, Any]) -> None:
    config |= {
        "num_experts": fields.whole("expert_count", most=2**13),
        "num_experts_per_tok": fields.whole("expert_used_count"),
        "moe_intermediate_size": fields.whole("expert_feed_forward_length"),
        "norm_topk_prob": True,  # llama.cpp always does
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
    }


def _gemma_query_scale(fields: _Fields, config: dict[str, Any], layers_of_27b: int) -> float:
    """query_pre_attn_scalar is not in the metadata: the 27B models divide by hidden/heads, the others by head_dim."""
    if config["num_hidden_layers"] == layers_of_27b:
        return config["hidden_size"] // config["num_attention_heads"]
    return config["head_dim"]


def _gemma2(fields: _Fields, config: dict[str, Any]) -> None:
    del config["hidden_act"]
    config |= {
        "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": fields.real("attn_logit_softcapping"),
        "final_logit_softcapping": fields.real("final_logit_softcapping"),
        "sliding_window": fields.whole("attention.sliding_window", most=2**31),
        "query_pre_attn_scalar": _gemma_query_scale(fields, config, layers_of_27b=46),
    }


def _gemma3(fields: _Fields, config: dict[str, Any]) -> None:
    del config["hidden_act"]
    pattern = 6
    config |= {
        "hidden_activation": "gelu_pytorch_tanh",
        "final_logit_softcapping": (
            fields.real("final_logit_softcapping") if fields.has("final_logit_softcapping") else None
        ),
        "attn_logit_softcapping": None,
        "rope_theta": fields.real("rope.freq_base", 1_000_000.0),
        "rope_local_base_freq": fields.real("rope.freq_base_swa", 10000.0),
        "sliding_window": fields.whole("attention.sliding_window", most=2**31),
        "sliding_window_pattern": pattern,
        "layer_types": [
            "full_attention" if (i + 1) % pattern == 0 else "sliding_attention"
            for i in range(config["num_hidden_layers"])
        ],
        "query_pre_attn_scalar": _gemma_query_scale(fields, config, layers_of_27b=62),
    }


def _phi3(fields: _Fields, config: dict[str, Any]) -> None:
    rotary = fields.whole("rope.dimension_count", config["head_dim"])
    config["partial_rotary_factor"] = rotary / config["head_dim"]
    config["original_max_position_embeddings"] = fields.whole(
        "rope.scaling.original_context_length", config["max_position_embeddings"], most=2**31
    )
    config["sliding_window"] = fields.whole("attention.sliding_window", 0, most=2**31) or None
    if config["rope_scaling"] is not None and config["rope_scaling"]["rope_type"] == "longrope":
        config["rope_scaling"]["original_max_position_embeddings"] = config["original_max_position_embeddings"]


def _olmo2(fields: _Fields, config: dict[str, Any]) -> None:
    if fields.whole("attention.sliding_window", 0, most=2**31):
        config["model_type"] = "olmo3"


def _gpt_oss(fields: _Fields, config: dict[str, Any]) -> None:
    config |= {
        "intermediate_size": fields.whole("expert_feed_forward_length"),
        "num_local_experts": fields.whole("expert_count", most=2**13),
        "num_experts_per_tok": fields.whole("expert_used_count"),
        "sliding_window": fields.whole("attention.sliding_window", most=2**31),
        "layer_types": ["full_attention" if i % 2 else "sliding_attention" for i in range(config["num_hidden_layers"])],
        "swiglu_limit": 7.0,
        "attention_bias": True,
    }
    if config["rope_scaling"] is not None:
        config["rope_scaling"] |= {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": False} | {
            key: value for key, value in config["rope_scaling"].items() if key.startswith("beta")
        }


_ADD: dict[str, Callable[[_Fields, dict[str, Any]], None]] = {
    "llama": _llama,
    "smollm3": _smollm3,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3moe,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "olmo2": _olmo2,
    "gpt-oss": _gpt_oss,
}
