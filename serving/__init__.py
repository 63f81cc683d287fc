"""When each request is computed: `LLM` generates text from a model."""

from .errors import ContextLengthError, EmptyPromptError
from .generation import Generation
from .llm import LLM
from .types import Completion, FinishReason, Progress, SamplingParams, Timings, TokenEvent, Usage

__all__ = [
    "LLM",
    "Completion",
    "ContextLengthError",
    "EmptyPromptError",
    "FinishReason",
    "Generation",
    "Progress",
    "SamplingParams",
    "Timings",
    "TokenEvent",
    "Usage",
]
