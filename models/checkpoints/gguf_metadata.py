"""A decoder's configuration as the metadata of a GGUF file: gguf_config.py, the other way."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Final

import numpy as np

from ...backends.errors import UnsupportedError
from ..config import MlpConfig, ModelConfig, MoeConfig
from ..errors import ConfigError
from ..families import config_from_hf
from ..rope import RopeConfig, RopeScaling, frequencies
from .gguf_config import config_from_gguf, llama3_factors
from .gguf_names import ARCHITECTURES, Architecture

_ADVICE: Final = "convert to safetensors or orbax"


def architecture_of(model_type: object) -> Architecture:
    """The GGUF architecture that stores a Hugging Face model type.

    Raises:
        UnsupportedError: none does.
    """
    for entry in ARCHITECTURES.values():
        if model_type in entry.model_types:
            return entry
    known = ", ".join(name for entry in ARCHITECTURES.values() for name in entry.model_types)
    raise UnsupportedError(f"--to gguf: found model_type {model_type!r}, expected one of {known}")


def gguf_metadata(config: ModelConfig, arch: Architecture, hf: Mapping[str, Any]) -> dict[str, Any]:
    """Keys and values, the architecture's name in front of its keys.

    Args:
        config: what is described.
        arch: the architecture that describes it.
        hf: the Hugging Face configuration, for the ids of special tokens.
    """
    layer = config.layers[0]
    attention, mlp = layer.attention, layer.mlp
    windows = {entry.attention.window for entry in config.layers} - {None}
    keys: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "block_count": config.num_layers,
        "context_length": config.max_positions,
        "embedding_length": config.embed_dim,
        "feed_forward_length": mlp.dim if isinstance(mlp, MlpConfig) else mlp.expert.dim,
        "attention.head_count": attention.num_heads,
        "attention.head_count_kv": attention.num_kv_heads,
        "attention.key_length": attention.head_dim,
        "attention.value_length": attention.head_dim,
        "attention.layer_norm_rms_epsilon": layer.norm.eps,
    }
    if isinstance(mlp, MoeConfig):
        keys |= {"expert_count": mlp.num_experts, "expert_used_count": mlp.top_k}
        if arch.name != "llama":
            keys["expert_feed_forward_length"] = mlp.expert.dim
    if windows:
        keys["attention.sliding_window"] = max(window for window in windows if window is not None)
    elif arch.name == "phi3":
        keys["attention.sliding_window"] = 0
    if attention.soft_cap is not None:
        keys["attn_logit_softcapping"] = attention.soft_cap
    if config.logit_soft_cap is not None:
        keys["final_logit_softcapping"] = config.logit_soft_cap
    keys |= _rope_keys(config)
    metadata: dict[str, Any] = {f"{arch.name}.{key}": value for key, value in keys.items()}
    metadata["general.architecture"] = arch.name
    for name in ("bos", "eos", "pad"):
        token = hf.get(f"{name}_token_id")
        token = token[0] if isinstance(token, list) and token else token
        if isinstance(token, int):
            metadata[f"tokenizer.ggml.{'padding' if name == 'pad' else name}_token_id"] = token
    return metadata


def _rope_keys(config: ModelConfig) -> dict[str, Any]:
    ropes = {
        layer.attention.window is not None: layer.attention.rope for layer in config.layers if layer.attention.rope
    }
    rope = ropes.get(False) or ropes[True]
    keys: dict[str, Any] = {"rope.freq_base": rope.theta, "rope.dimension_count": rope.dim}
    if True in ropes and ropes[True] != rope:
        keys["rope.freq_base_swa"] = ropes[True].theta
    scaling = rope.scaling
    if scaling is None:
        return keys
    if scaling.kind == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
        if config.family != "gemma3":  # there alone the context counts as stretched already
            keys["context_length"] = round(config.max_positions / scaling.factor)
    elif scaling.kind == "yarn":
        keys |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": scaling.factor,
            "rope.scaling.original_context_length": scaling.original_positions,
        }
        given = {
            "attn_factor": scaling.attention_factor,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
        }
        usual = {"attn_factor": 0.1 * math.log(scaling.factor) + 1, "beta_fast": 32.0, "beta_slow": 1.0}
        keys |= {f"rope.scaling.yarn_{key}": value for key, value in given.items() if value != usual[key]}
    elif scaling.kind == "longrope":
        keys |= {
            "rope.scaling.type": "longrope",
            "rope.scaling.original_context_length": scaling.original_positions,
            "rope.scaling.attn_factor": scaling.attention_factor,
        }
    return keys


def rope_tensors(config: ModelConfig, hf: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors in which GGUF keeps RoPE factors for each frequency; none for other scalings."""
    rope = next(layer.attention.rope for layer in config.layers if layer.attention.rope)
    scaling = rope.scaling
    if scaling is None:
        return {}
    if scaling.kind == "llama3":
        return {"rope_freqs.weight": llama3_factors(_llama3_fields(scaling), rope.theta, rope.dim).astype(np.float32)}
    if scaling.kind == "longrope":
        stored = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
        factors = {name: stored.get(f"{name}_factor") or scaling.divisors for name in ("long", "short")}
        return {f"rope_factors_{name}.weight": np.asarray(value, np.float32) for name, value in factors.items()}
    return {}


def _llama3_fields(scaling: RopeScaling) -> dict[str, float]:
    return {
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_positions,
    }


def check_readable(
    config: ModelConfig,
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    factors: Mapping[str, np.ndarray],
) -> None:
    """Raise UnsupportedError unless this metadata, read back, describes the same model.

    GGUF has no key for much that a configuration can say; what would be lost must not be lost silently.
    """
    try:
        hf = config_from_gguf(
            metadata,
            shapes=shapes,
            rope_factors={name: [float(x) for x in values] for name, values in factors.items()},
            source="GGUF metadata",
        )
        back = replace(config_from_hf(hf, source="GGUF metadata"), family=config.family)
    except ConfigError as error:
        raise UnsupportedError(f"--to gguf: GGUF cannot describe this model ({error}); {_ADVICE}") from error
    difference = next(_differences(config, back, "config"), None)
    if difference is not None:
        where, ours, theirs = difference
        raise UnsupportedError(
            f"--to gguf: {where}: found {str(ours)[:100]}, but in GGUF this model has {str(theirs)[:100]}; {_ADVICE}"
        )


def _differences(ours: Any, theirs: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """Where two configurations differ by more than the precision of GGUF's 32-bit floats."""
    if isinstance(ours, RopeConfig) and isinstance(theirs, RopeConfig):
        scales = [1.0 if rope.scaling is None else rope.scaling.attention_factor for rope in (ours, theirs)]
        values = [(*frequencies(rope), scale) for rope, scale in zip((ours, theirs), scales, strict=True)]
        # Two ways to write the same rotation are the same.
        if len(values[0]) != len(values[1]) or not np.allclose(*values, rtol=1e-5, atol=0):
            yield where, ours, theirs
    elif is_dataclass(ours) and type(ours) is type(theirs):
        for entry in fields(ours):
            yield from _differences(getattr(ours, entry.name), getattr(theirs, entry.name), f"{where}.{entry.name}")
    elif isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == len(theirs):
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from _differences(*pair, f"{where}.{i}")
    elif isinstance(ours, float) and isinstance(theirs, float):
        if ours != theirs and not math.isclose(ours, theirs, rel_tol=1e-5):
            yield where, ours, theirs
    elif ours != theirs:
        yield where, ours, theirs
