"""How the tokens of an answer are chosen, and when it ends."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, no_type_check

from ..backends.errors import InvalidParameterError
from .capabilities import PARAMETERS

_MAX_DIGITS = 10
"""Of a token id; int() itself raises at some thousands."""


@no_type_check  # it refuses what it cannot take itself, by name
@dataclass(frozen=True)
class SamplingParams:
    """The sampling parameters of one request; `capabilities.PARAMETERS` and docs/sampling.md say what each does.

    Raises:
        InvalidParameterError: a value is out of range; the message names the field and what is accepted.
    """

    max_tokens: int | None = 128
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    bad_words: tuple[str, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: bool = False

    def __post_init__(self) -> None:
        for parameter in PARAMETERS:
            value = getattr(self, parameter.name)
            if value is not parameter.default:  # most are left out, and a request is checked before it is queued
                object.__setattr__(self, parameter.name, parameter.domain.read(parameter.name, value))
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidParameterError("min_tokens", self.min_tokens, f"at most max_tokens ({self.max_tokens})")

    def num_tokens(self, room: int) -> int:
        """Most tokens to generate where the context has room for `room`."""
        return room if self.max_tokens is None else min(self.max_tokens, room)


def unsigned_seed(seed: int) -> int:
    """A seed of a protocol that has signed ones: the same 64 bits. One of more bits stays, and is refused later."""
    return seed + 2**64 if -(2**63) <= seed < 0 else seed


def biases_by_id(biases: Mapping[Any, Any]) -> dict[Any, Any]:
    """A logit_bias of JSON, whose keys are texts. Those that are no token ids stay, and are refused later."""
    return {int(key) if isinstance(key, str) and _is_id(key) else key: bias for key, bias in biases.items()}


def _is_id(text: str) -> bool:
    return len(text) <= _MAX_DIGITS and text.isdecimal()
