"""When each request is computed: `LLM` generates text from a model, `Engine` runs many requests at once, `Client` asks
a server.

A name is imported when it is first used, so that `distaff.serving.Client` needs neither JAX nor Flax.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .build import build_engine
    from .client import AsyncClient, Client
    from .engine import Engine
    from .engine_config import EngineConfig
    from .errors import CacheTooSmallError, ContextLengthError, DeviceError, EmptyPromptError, EngineClosedError
    from .generation import Generation
    from .llm import LLM
    from .types import (
        Choice,
        Completion,
        Embedding,
        FinishReason,
        Kind,
        Progress,
        PromptLogprobs,
        Request,
        SamplingParams,
        Score,
        Timings,
        TokenEvent,
        TokenLogprob,
        Usage,
    )

__all__ = [
    "LLM",
    "AsyncClient",
    "CacheTooSmallError",
    "Choice",
    "Client",
    "Completion",
    "ContextLengthError",
    "DeviceError",
    "Embedding",
    "EmptyPromptError",
    "Engine",
    "EngineClosedError",
    "EngineConfig",
    "FinishReason",
    "Generation",
    "Kind",
    "Progress",
    "PromptLogprobs",
    "Request",
    "SamplingParams",
    "Score",
    "Timings",
    "TokenEvent",
    "TokenLogprob",
    "Usage",
    "build_engine",
]

_HOMES = {
    "LLM": "llm",
    "AsyncClient": "client",
    "Client": "client",
    "Engine": "engine",
    "EngineConfig": "engine_config",
    "Generation": "generation",
    "build_engine": "build",
    **dict.fromkeys(
        ("CacheTooSmallError", "ContextLengthError", "DeviceError", "EmptyPromptError", "EngineClosedError"), "errors"
    ),
}
"""Where names come from; those that are not here come from `types`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES.get(name, 'types')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
