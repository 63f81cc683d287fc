"""Which model is meant: by name, by file, or by its numbers alone."""

import json
import re
from pathlib import Path
from typing import Any

from ...backends.errors import UsageError
from ...models.checkpoints import open_checkpoint, resolve_model, shipped_configs
from ...models.config import ModelConfig
from ...models.families import config_from_hf

_FIELDS = {
    "layers": "num_hidden_layers",
    "embed": "hidden_size",
    "mlp": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab": "vocab_size",
    "experts": "num_experts",
    "top_k": "num_experts_per_tok",
    "expert_mlp": "moe_intermediate_size",
    "tied": "tie_word_embeddings",
}
_NEEDED = ("layers", "embed", "mlp", "heads", "vocab")


def model_config(model: str, *, offline: bool = False) -> ModelConfig:
    """The configuration of an alias, a folder, a hub id, a config.json, or a family with numbers.

    Raises:
        UsageError: a config.json that cannot be read, or numbers that are missing or unknown.
    """
    if model in shipped_configs():
        return config_from_hf(json.loads(shipped_configs()[model].read_text()), source=model)
    if re.fullmatch(r"[a-z0-9_]+:\w+=.*", model):
        return config_from_hf(_numbers(model), source=model)
    if model.endswith(".json"):
        try:
            return config_from_hf(json.loads(Path(model).read_text("utf-8")), source=model)
        except (OSError, ValueError) as error:
            raise UsageError(f"--model {model}: cannot be read ({error})") from error
    checkpoint = open_checkpoint(resolve_model(model, offline=offline or None))
    return config_from_hf(checkpoint.hf_config, source=str(checkpoint.path))


def _numbers(model: str) -> dict[str, Any]:
    family, _, rest = model.partition(":")
    given: dict[str, int] = {}
    for part in rest.split(","):
        name, equals, number = part.strip().partition("=")
        if name not in _FIELDS or not equals or not number.isdecimal():
            raise UsageError(f"--model {model}: {part!r}; numbers are NAME=N, of {', '.join(_FIELDS)}")
        given[name] = int(number)
    missing = [name for name in _NEEDED if name not in given]
    if missing:
        raise UsageError(f"--model {model}: {', '.join(missing)} missing")
    config: dict[str, Any] = {_FIELDS[name]: value for name, value in given.items()}
    config |= {"model_type": family, "max_position_embeddings": 1 << 20, "rms_norm_eps": 1e-6, "hidden_act": "silu"}
    config.setdefault("num_key_value_heads", given["heads"])
    config.setdefault("head_dim", given["embed"] // given["heads"])
    config["tie_word_embeddings"] = bool(given.get("tied", 0))
    return config
