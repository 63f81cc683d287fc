"""What goes into a generation and what comes out. Imports no sibling."""

import math
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from ..backends.errors import InvalidParameterError

_MIN_TEMPERATURE = 1e-4


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when to stop.

    Args:
        max_tokens: most tokens to generate; the model's context may end a text sooner.
        temperature: 0 takes the most likely token each time; higher is more varied.
        top_k: draw from the k most likely tokens only, 0 for all.
        top_p: draw from the fewest tokens whose probabilities reach this sum, 1 for all.
        min_p: draw from tokens at least this share as likely as the most likely one, 0 for all.
        seed: 64 bits that make the draw repeatable; None draws one, which the answer names.
        stop: texts that end the generation; they are left out of the answer.

    Raises:
        InvalidParameterError: a value is out of range.
    """

    max_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _whole("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _whole("top_k", self.top_k, 0, 2**31 - 1)
        if self.seed is not None:
            _whole("seed", self.seed, 0, 2**64 - 1)
        _real("temperature", self.temperature, "0 (greedy) or a number from 0.0001 to 100")
        if self.temperature != 0 and not _MIN_TEMPERATURE <= self.temperature <= 100:
            raise InvalidParameterError("temperature", self.temperature, "0 (greedy) or a number from 0.0001 to 100")
        _real("top_p", self.top_p, "a number above 0, at most 1")
        if not 0 < self.top_p <= 1:
            raise InvalidParameterError("top_p", self.top_p, "a number above 0, at most 1")
        _real("min_p", self.min_p, "a number from 0 to 1")
        if not 0 <= self.min_p <= 1:
            raise InvalidParameterError("min_p", self.min_p, "a number from 0 to 1")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(text, str) and text for text in stop):
            raise InvalidParameterError("stop", self.stop, "texts of at least one character")
        object.__setattr__(self, "stop", stop)


def _whole(field: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidParameterError(field, value, f"a whole number from {low} to {high}")


def _real(field: str, value: object, expected: str) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise InvalidParameterError(field, value, expected)


class FinishReason(StrEnum):
    """Why a generation ended: the model or a stop text ended it, or max_tokens or the context was reached."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True)
class TokenEvent:
    """One generated token, and the text that became certain with it (perhaps none yet)."""

    token_id: int
    text: str
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass
class Timings:
    """Seconds spent on each part. `load` and `compile` are zero once a model is loaded and its programs compiled."""

    load: float = 0.0
    compile: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    decoded_tokens: int = field(default=0, repr=False)

    @property
    def tokens_per_second(self) -> float:
        """Tokens decoded a second; the first token belongs to prefill."""
        return self.decoded_tokens / self.decode if self.decode > 0 else 0.0


@dataclass(frozen=True)
class Completion:
    """An answer. `token_ids` holds what was generated, a token that ended the text included."""

    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON knows it."""
        timings = {name: round(value, 6) for name, value in asdict(self.timings).items() if name != "decoded_tokens"}
        return {
            "text": self.text,
            "token_ids": list(self.token_ids),
            "prompt_token_ids": list(self.prompt_token_ids),
            "finish_reason": self.finish_reason.value,
            "usage": {**asdict(self.usage), "total_tokens": self.usage.total_tokens},
            "timings": {**timings, "tokens_per_second": round(self.timings.tokens_per_second, 3)},
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Progress:
    """How far a piece of work has come: `done` of `total` bytes, or of programs for the stage "compile"."""

    stage: str
    done: int
    total: int
