"""RoPE settings as checkpoints write them: `rope_parameters` (transformers 5), `rope_theta` and `rope_scaling` (4)."""

import math
from collections.abc import Mapping
from typing import Any

from ..rope import RopeConfig, RopeScaling
from .fields import Fields


def read_rope(
    fields: Fields, head_dim: int, *, theta: float = 10_000.0, partial: float = 1.0, layer_type: str | None = None
) -> RopeConfig:
    """The rotation of layers of one type.

    Args:
        fields: the whole configuration.
        head_dim: H.
        theta: base where the file names none.
        partial: rotated part of each head where the file names none.
        layer_type: the entry to read where `rope_parameters` has one for each type of layer.

    Raises:
        ConfigError: an unknown type, or a field that it needs is missing.
    """
    settings = _settings(fields, layer_type)
    share = settings.number("partial_rotary_factor", fields.number("partial_rotary_factor", partial))
    dim = int(head_dim * share)
    if dim < 2 or dim % 2 or dim > head_dim:
        raise settings.error("partial_rotary_factor", share, f"a share of {head_dim} that is even")
    theta = settings.number("rope_theta", theta)
    return RopeConfig(dim, theta, _scaling(fields, settings, dim))


def context_length(fields: Fields, *, extends: bool = True, default: int | None = None) -> int:
    """Longest context in tokens: max_position_embeddings, stretched where the scaling says that it extends it."""
    trained = (
        fields.integer("max_position_embeddings")
        if default is None
        else fields.integer("max_position_embeddings", default)
    )
    settings = _settings(fields, None)
    kind = settings.values.get("rope_type") or settings.values.get("type")
    if extends and kind in ("linear", "dynamic", "yarn"):
        original = _original(fields, settings) if kind == "yarn" else trained
        return max(trained, round(original * settings.number("factor")))
    return trained


def _settings(fields: Fields, layer_type: str | None) -> Fields:
    values: dict[str, Any] = {"rope_theta": fields.values.get("rope_theta")}
    source = fields.source
    for name in ("rope_scaling", "rope_parameters"):
        table = fields.table(name)
        if table is None:
            continue
        entry: Mapping[str, Any] = table.values
        nested = next((value for value in entry.values() if isinstance(value, Mapping)), None)
        if nested is not None:
            entry = entry.get(layer_type or "full_attention") or nested
        values |= entry
        source = table.source
    return Fields(values, source)


def _original(fields: Fields, settings: Fields) -> int:
    name = "original_max_position_embeddings"
    # Phi-3 keeps it at the top, and there it wins.
    if fields.values.get(name) is not None:
        return fields.integer(name)
    return settings.integer(name, fields.integer("max_position_embeddings"))


def _scaling(fields: Fields, settings: Fields, dim: int) -> RopeScaling | None:
    kind = settings.values.get("rope_type") or settings.values.get("type") or "default"
    match kind:
        case "default":
            return None
        case "linear":
            return RopeScaling("linear", factor=settings.number("factor"))
        case "dynamic":
            trained = fields.integer("max_position_embeddings")
            factor = settings.number("factor")
            longest = max(trained, round(trained * factor))
            return RopeScaling("dynamic", factor=factor, original_positions=trained, max_positions=longest)
        case "llama3":
            return RopeScaling(
                "llama3",
                factor=settings.number("factor"),
                original_positions=settings.integer("original_max_position_embeddings"),
                low_freq_factor=settings.number("low_freq_factor"),
                high_freq_factor=settings.number("high_freq_factor"),
            )
        case "yarn":
            return _yarn(fields, settings)
        case "longrope" | "su":
            return _longrope(fields, settings, dim)
        case _:
            raise settings.error("rope_type", kind, "default, linear, dynamic, llama3, yarn or longrope")


def _yarn(fields: Fields, settings: Fields) -> RopeScaling:
    original = _original(fields, settings)
    factor = settings.number("factor", fields.integer("max_position_embeddings") / original)

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    attention = settings.optional_number("attention_factor")
    if attention is None:
        top, bottom = settings.optional_number("mscale"), settings.optional_number("mscale_all_dim")
        attention = magnitude(top) / magnitude(bottom) if top and bottom else magnitude(1.0)
    return RopeScaling(
        "yarn",
        factor=factor,
        original_positions=original,
        beta_fast=settings.number("beta_fast", 32.0),
        beta_slow=settings.number("beta_slow", 1.0),
        truncate=settings.flag("truncate", True),
        attention_factor=attention,
    )


def _longrope(fields: Fields, settings: Fields, dim: int) -> RopeScaling:
    """arXiv 2402.13753. The original switches factors at the original length; here the longest context decides."""
    original, longest = _original(fields, settings), fields.integer("max_position_embeddings")
    stretch = longest / original
    attention = settings.optional_number("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    divisors = settings.numbers("long_factor" if longest > original else "short_factor", dim // 2)
    return RopeScaling("longrope", original_positions=original, divisors=divisors, attention_factor=attention)
