"""What goes into the engine and what comes out."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, no_type_check

from ..backends.errors import InvalidParameterError, UnsupportedError
from .capabilities import PARAMETERS
from .errors import EmptyPromptError
from .logprobs import PromptLogprobs, TokenLogprob
from .results import Choice, Completion, Embedding, FinishReason, Score, Timings, TokenEvent, Usage
from .sampling_params import SamplingParams

__all__ = [
    "Choice",
    "Completion",
    "Embedding",
    "FinishReason",
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
]


class Kind(StrEnum):
    """What is wanted of a prompt."""

    GENERATE = "generate"
    """An answer."""
    SCORE = "score"
    """The log-probabilities of its own tokens."""
    EMBED = "embed"
    """Its hidden states, pooled into one vector."""


# What a request that draws no token may still set.
_WITHOUT_DRAWING = {Kind.SCORE: {"prompt_logprobs", "seed"}, Kind.EMBED: {"seed"}}


@no_type_check  # as SamplingParams
@dataclass(frozen=True)
class Request:
    """One prompt and what is wanted of it.

    Attributes:
        prompt: token ids, at least one.
        params: how the answer is drawn.
        priority: lower runs first; equal ones in the order of their arrival.
        cache_salt: prefixes are shared among requests of the same salt only.
        use_prefix_cache: False neither takes from the prefix cache nor leaves anything there.
        pooling: for Kind.EMBED, over all positions or the last one's alone.
        id: the caller's name for it, None lets the engine make one.
        bad_word_ids: the spellings of `params.bad_words` (see bad_words.py).
        is_chat: whether the prompt was a conversation; only metrics look at it.

    Raises:
        EmptyPromptError, InvalidParameterError: the prompt holds nothing, or something that is no token id.
        UnsupportedError: a sampling parameter on a request that draws nothing.
    """

    prompt: tuple[int, ...]
    params: SamplingParams = SamplingParams()
    kind: Kind = Kind.GENERATE
    priority: int = 0
    cache_salt: str | None = None
    use_prefix_cache: bool = True
    pooling: Literal["mean", "last"] = "mean"
    id: str | None = None
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    is_chat: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", tuple(self.prompt))
        object.__setattr__(self, "bad_word_ids", _tuples(self.bad_word_ids))
        if not self.prompt:
            raise EmptyPromptError("the prompt is empty, expected at least one token")
        if self.pooling not in ("mean", "last"):
            raise InvalidParameterError("pooling", self.pooling, "mean or last")
        if self.kind is not Kind.GENERATE:
            for parameter in PARAMETERS:
                is_set = getattr(self.params, parameter.name) != parameter.default
                if is_set and parameter.name not in _WITHOUT_DRAWING[self.kind]:
                    raise UnsupportedError(f"{parameter.name} is set, but a {self.kind} request draws no token")

    @property
    def counts_as(self) -> str:
        """Its kind as metrics tell them apart: conversations are one of their own."""
        return "chat" if self.is_chat and self.kind is Kind.GENERATE else self.kind.value


def _tuples(sequences: Iterable[Iterable[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(sequence) for sequence in sequences)


@dataclass(frozen=True)
class Progress:
    """How far a piece of work has come: `done` of `total` bytes, or of programs for the stage "compile"."""

    stage: str
    done: int
    total: int
