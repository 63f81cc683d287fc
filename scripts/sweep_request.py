"""From what `distaff sweep` is given to a request."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backends.errors import InvalidParameterError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..backends.hardware import Chip
    from ..models.config import ModelConfig
    from ..sharding.sweep.request import SweepRequest
    from ..sharding.sweep.store import Sweep

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


def model_config(model: str, *, offline: bool) -> "ModelConfig":
    """The configuration of an alias, a folder, a hub id, a config.json, or a family with numbers.

    Raises:
        UsageError: a config.json that cannot be read, or numbers that are missing or unknown.
    """
    from ..models.checkpoints import open_checkpoint, resolve_model, shipped_configs
    from ..models.families import config_from_hf

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


def parse_time(field: str, text: str | None) -> float | None:
    """Seconds of "500ms" or "1.5s".

    Raises:
        InvalidParameterError: not of that form.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s)", text.strip())
    if found is None or float(found[1]) <= 0:
        raise InvalidParameterError(field, text, "a time such as 500ms or 1.5s")
    return float(found[1]) * (1e-3 if found[2] == "ms" else 1.0)


def request_of(sweep: "Sweep", table: "Mapping[str, Chip]", *, offline: bool) -> "SweepRequest":
    """The request that a stored sweep answered, with the chips' figures of then."""
    from dataclasses import replace

    from ..sharding.sweep.efficiency import Efficiencies, Efficiency
    from ..sharding.sweep.request import SweepRequest, Targets, Workload
    from ..sharding.sweep.slices import parse_slice

    asked = sweep.asked
    figures = asked["chips"]
    known = {name: replace(row, **figures[name]) if name in figures else row for name, row in table.items()}
    rates = asked["efficiencies"]
    made = {name: Efficiency.from_dict(rates[name]) for name in ("low", "best", "high")}
    ttft, tpot = (None if asked[name] is None else asked[name] / 1e3 for name in ("slo_ttft_ms", "slo_tpot_ms"))
    return SweepRequest(
        model=asked["model"],
        config=model_config(asked["model"], offline=offline),
        slices=tuple(parse_slice(name, known) for name in asked["hw"]),
        workload=Workload(asked["isl"], asked["osl"], asked["longest"]),
        phase=asked["phase"],
        batches=tuple(asked["batches"]),
        chunks=tuple(asked["chunks"]),
        weights=tuple(asked["weights"]),
        activations=tuple(asked["activations"]),
        kv=tuple(asked["kv"]),
        axes=tuple(asked["axes"]),
        targets=Targets(ttft, tpot),
        objective=asked["objective"],
        efficiencies=Efficiencies(**made, origin=rates["origin"]),
    )
