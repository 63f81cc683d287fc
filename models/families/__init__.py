"""Model families: each maps a checkpoint's configuration and tensor names onto the one decoder."""

from collections.abc import Mapping
from typing import Any

from ..config import ModelConfig
from ..errors import ConfigError, UnknownArchitectureError
from .base import Family
from .fields import Fields
from .gemma import GEMMA2, GEMMA3, GEMMA3_MULTIMODAL
from .glm4_moe import GLM4_MOE
from .gpt_oss import GPT_OSS
from .granite import GRANITE
from .llama import LLAMA, MISTRAL
from .mixtral import MIXTRAL
from .olmo2 import OLMO2
from .opt import OPT
from .palm import COHERE, PALM
from .phi3 import PHI3
from .qwen import QWEN2, QWEN3
from .qwen_moe import QWEN2_MOE, QWEN3_MOE
from .smollm3 import SMOLLM3
from .sources import TensorSource

__all__ = ["FAMILIES", "Family", "TensorSource", "config_from_hf", "family_for", "family_named"]

FAMILIES: tuple[Family, ...] = (
    OPT,
    LLAMA,
    MISTRAL,
    SMOLLM3,
    QWEN2,
    QWEN3,
    QWEN2_MOE,
    QWEN3_MOE,
    MIXTRAL,
    GEMMA2,
    GEMMA3,
    GEMMA3_MULTIMODAL,
    PHI3,
    OLMO2,
    GRANITE,
    GPT_OSS,
    GLM4_MOE,
    COHERE,
    PALM,
)


def family_for(hf: Mapping[str, Any], *, source: str = "config.json") -> Family:
    """The family that reads this configuration, by its `model_type`.

    Raises:
        UnknownArchitectureError: no family does; the message lists those that exist.
    """
    model_type = hf.get("model_type")
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(sorted(model_type for family in FAMILIES for model_type in family.model_types))
    raise UnknownArchitectureError(
        f"{source}: model_type is {model_type!r}, expected one of {known}. "
        "A new family is one short file: docs/families.md"
    )


def config_from_hf(hf: Mapping[str, Any], *, source: str = "config.json") -> ModelConfig:
    """Translates a configuration in transformers' form.

    Args:
        hf: contents of config.json.
        source: name of the file, for errors.

    Raises:
        UnknownArchitectureError: no family reads its model_type.
        ConfigError: a field is missing or holds what it cannot.
    """
    return family_for(hf, source=source).config(Fields(hf, source))


def family_named(name: str) -> Family:
    """The family that ModelConfig.family names.

    Raises:
        ConfigError: there is none.
    """
    for family in FAMILIES:
        if family.name == name:
            return family
    raise ConfigError(f"family {name!r}: expected one of " + ", ".join(family.name for family in FAMILIES))
