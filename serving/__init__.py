"""When each request is computed: `LLM` generates text from a model, `Engine` runs many requests at once."""

from .build import build_engine
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
    "CacheTooSmallError",
    "Choice",
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
