"""What comes out of a request: events while it runs, and what they add up to."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from .logprobs import PromptLogprobs, TokenLogprob


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    """The model ended it, or a stop text or stop token came up."""
    LENGTH = "length"
    """max_tokens or the context was reached."""
    ABORT = "abort"
    """The caller ended it."""
    ERROR = "error"
    """It failed; what was generated before is kept."""


class TokenEvent(NamedTuple):
    """One generated token, and the text that became certain with it (perhaps none yet).

    Attributes:
        token_id: None where no token belongs to it: an echoed prompt, an ending from outside.
        text: what to show next; the texts of a choice joined are its whole text.
        finish_reason: set on the last event of a choice.
        choice: which answer it belongs to, from 0.
        logprob: of this token, where asked for.
        stopped_by: as Choice has it, with the `finish_reason`.
    """

    token_id: int | None
    text: str
    finish_reason: FinishReason | None = None
    choice: int = 0
    logprob: TokenLogprob | None = None
    stopped_by: str | int | None = None


@dataclass(frozen=True)
class Choice:
    """One answer to a request.

    Attributes:
        token_ids: what was generated, a token that ended the text included, behind the prompt if it is echoed.
        logprobs: of each generated token, None where not asked for.
        stopped_by: the stop text, or the end or stop token, behind FinishReason.STOP.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None = None
    stopped_by: str | int | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason.value,
            "stopped_by": self.stopped_by,
            "logprobs": None if self.logprobs is None else [entry.to_dict() for entry in self.logprobs],
        }


@dataclass(frozen=True)
class Usage:
    """Tokens read and written; `cached_tokens` of the prompt were found computed."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def to_dict(self) -> dict[str, int]:
        return {**asdict(self), "total_tokens": self.total_tokens}


@dataclass
class Timings:
    """Seconds spent on each part.

    Attributes:
        load, compile: zero once a model is loaded and its programs compiled.
        queue: from submitting to the first step that worked on it.
        ttft: from submitting to the first token.
        prefill: steps that read the prompt.
        decode: from the first token to the last.
    """

    load: float = 0.0
    compile: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    decoded_tokens: int = field(default=0, repr=False)
    queue: float = 0.0
    ttft: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens decoded a second; the first token belongs to prefill."""
        return self.decoded_tokens / self.decode if self.decode > 0 else 0.0

    def to_dict(self) -> dict[str, float]:
        seconds = {name: round(value, 6) for name, value in asdict(self).items() if name != "decoded_tokens"}
        return {**seconds, "tokens_per_second": round(self.tokens_per_second, 3)}


@dataclass(frozen=True)
class Completion:
    """The answers to one prompt; `text`, `token_ids` and `finish_reason` are those of the first."""

    choices: tuple[Choice, ...]
    prompt_token_ids: tuple[int, ...]
    usage: Usage
    timings: Timings
    seed: int
    prompt_logprobs: PromptLogprobs | None = None

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        return self.choices[0].finish_reason

    def to_dict(self) -> dict[str, Any]:
        """The answers as JSON knows them."""
        return {
            "text": self.text,
            "token_ids": list(self.token_ids),
            "prompt_token_ids": list(self.prompt_token_ids),
            "finish_reason": self.finish_reason.value,
            "usage": self.usage.to_dict(),
            "timings": self.timings.to_dict(),
            "seed": self.seed,
            "choices": [choice.to_dict() for choice in self.choices],
            "prompt_logprobs": None if self.prompt_logprobs is None else self.prompt_logprobs.to_json(),
        }


@dataclass(frozen=True)
class Score:
    """How likely a model finds a text."""

    logprobs: PromptLogprobs
    usage: Usage
    timings: Timings

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.logprobs.token_ids

    @property
    def total(self) -> float:
        """Log-probability of the whole text behind its first token."""
        return float(self.logprobs.logprobs.sum(dtype=np.float64))

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability of a token; 1 for a text of one token, which has none."""
        count = len(self.logprobs.logprobs)
        return float(np.exp(-self.total / count)) if count else 1.0

    def to_dict(self) -> dict[str, Any]:
        """The score as JSON knows it."""
        return {
            "token_ids": list(self.token_ids),
            "total": round(self.total, 6),
            "perplexity": round(self.perplexity, 6),
            "logprobs": self.logprobs.to_json(),
            "usage": self.usage.to_dict(),
            "timings": self.timings.to_dict(),
        }


@dataclass(frozen=True, eq=False)
class Embedding:
    """A text as a vector: its last hidden states pooled."""

    vector: Float[np.ndarray, "D"]
    prompt_token_ids: tuple[int, ...]
    usage: Usage
    timings: Timings

    def to_dict(self) -> dict[str, Any]:
        """The vector as JSON knows it."""
        return {
            "vector": self.vector.tolist(),
            "prompt_token_ids": list(self.prompt_token_ids),
            "usage": self.usage.to_dict(),
            "timings": self.timings.to_dict(),
        }
