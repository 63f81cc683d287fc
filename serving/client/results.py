"""What a server answers: events while a text comes, and what they add up to."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..logprobs import TokenLogprob
from ..results import Usage


@dataclass(frozen=True)
class Timings:
    """Seconds that the server spent on each part of a request.

    Attributes:
        queue: until it had a place in the batch.
        prefill, decode: computing the prompt, and the tokens after the first.
        first_token, total: from its arrival to the first token, and to the end.
        inter_token: from one token to the next, in the mean.
    """

    queue: float = 0.0
    prefill: float = 0.0
    first_token: float = 0.0
    decode: float = 0.0
    total: float = 0.0
    inter_token: float = 0.0


@dataclass(frozen=True)
class Admitted:
    """The first event: the request runs.

    Attributes:
        cached_tokens: of the prompt, found computed.
        params: the sampling parameters as they take effect, the seed that was drawn among them.
    """

    id: str
    queue_seconds: float
    prompt_tokens: int
    cached_tokens: int
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Delta:
    """What came for one choice: usually one token, several where the server had more at once.

    Attributes:
        text: what became certain with it, perhaps nothing yet; the texts of a choice joined are its text.
    """

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The last event of a choice.

    Attributes:
        reason: eos, stop_string, stop_token, length, context_limit; or what ended it before its end: cancelled,
            deadline, slow_reader, drained, error.
        stopped_by: the stop text, or the end or stop token.
        usage, timings, prompt_logprobs: of the whole request, in its last event alone.
    """

    index: int
    reason: str
    stopped_by: str | int | None = None
    completion_tokens: int = 0
    usage: Usage | None = None
    timings: Timings | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


type Event = Admitted | Delta | Finished


@dataclass(frozen=True)
class Choice:
    """One answer; `finish_reason` and `stopped_by` are as in Finished."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stopped_by: str | int | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Result:
    """The answers to one prompt; `text`, `token_ids` and `finish_reason` are those of the first.

    Attributes:
        params: the sampling parameters as they took effect; `seed` among them repeats the answer.
        prompt_logprobs: of each token of the prompt but the first, where asked for.
    """

    id: str
    choices: tuple[Choice, ...]
    usage: Usage
    timings: Timings
    params: Mapping[str, Any] = field(default_factory=dict)
    prompt_logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> str:
        return self.choices[0].finish_reason

    @property
    def seed(self) -> int | None:
        """What repeats the answer."""
        return self.params.get("seed")

    def to_dict(self) -> dict[str, Any]:
        """The answers as JSON knows them."""
        return {
            "id": self.id,
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "usage": self.usage.to_dict(),
            "timings": asdict(self.timings),
            "seed": self.seed,
            "choices": [
                {**asdict(choice), "token_ids": list(choice.token_ids), "logprobs": _json(choice.logprobs)}
                for choice in self.choices
            ],
            "prompt_logprobs": _json(self.prompt_logprobs),
        }


@dataclass(frozen=True)
class Score:
    """How likely the model finds a text.

    Attributes:
        logprobs: of each token but the first.
        total: the log-probability of all behind the first token.
    """

    id: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    total: float
    perplexity: float
    usage: Usage
    timings: Timings


@dataclass(frozen=True)
class Embedding:
    """A text as a vector."""

    id: str
    vector: tuple[float, ...]
    token_ids: tuple[int, ...]
    usage: Usage
    timings: Timings


@dataclass(frozen=True)
class Model:
    """What a server serves.

    Attributes:
        context: longest text in tokens, prompt included.
        parameters: (name, default, what is accepted, what it does) of each sampling parameter.
    """

    name: str
    family: str
    vocab_size: int
    context: int
    dtype: str
    backend: str
    layout: str
    max_batch: int
    has_tokenizer: bool
    has_chat_template: bool
    embeds: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    parameters: tuple[tuple[str, Any, str, str], ...]


@dataclass(frozen=True)
class Load:
    """How busy a server is."""

    waiting: int
    running: int
    tokens_in_flight: int
    pages_used: int
    pages_total: int
    max_batch: int


def _json(entries: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    return [entry.to_dict() for entry in entries]
