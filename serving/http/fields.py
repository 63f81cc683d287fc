"""Fields of request bodies: what is read, and what is known and refused by name."""

import json
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast

from ...backends.errors import InvalidParameterError
from ..capabilities import BY_NAME
from ..front import Call
from ..sampling_params import SamplingParams, biases_by_id, unsigned_seed


class Only:
    """What `only` leaves of a field.

    Attributes:
        why: no other values.
        accepted: these, and null.
    """

    def __init__(self, why: str, accepted: tuple[Any, ...]) -> None:
        self.why = why
        self.accepted = accepted

    def __call__(self, value: Any) -> Any:
        if value is not None and value not in self.accepted:
            accepted = " or ".join(["null", *map(json.dumps, self.accepted)])
            raise ValueError(f"is not supported: {self.why}; accepted is {accepted}")
        return value


def only(why: str, *accepted: Any) -> AfterValidator:
    """Marks a field of OpenAI's that is understood with few values alone; null is the same as leaving it out."""
    return AfterValidator(Only(why, accepted))


type Items[T] = Annotated[list[T], FailFast()]
"""A list that is given up at its first wrong item: a million of them would make as many errors."""


class Body(BaseModel):
    """A request body. Types are taken at their word ("1" is no number), and fields that nobody reads are refused."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, frozen=True)


class StreamOptions(Body):
    """`stream_options`."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[bool | None, only("nothing pads the stream", False)] = None


class Sampling(Body):
    """What both kinds of completion share: OpenAI's fields first, then Distaff's own.

    A field that is null has its default.
    """

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | Items[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    bad_words: Items[str] | None = None
    allowed_token_ids: Items[int] | None = None
    stop_token_ids: Items[int] | None = None
    ignore_eos: bool | None = None
    prompt_logprobs: int | None = None
    echo: bool | None = None

    request_id: str | None = None
    priority: int | None = None
    queue_timeout: float | None = None
    timeout: float | None = None
    cache_salt: str | None = None
    use_prefix_cache: bool | None = None
    return_token_ids: bool | None = None

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def params(self, *, max_tokens: int | None, **more: Any) -> SamplingParams:
        """Those of the engine.

        Args:
            max_tokens: None to the end of the context.
            more: what a kind of completion has under another name or default; None leaves it out.

        Raises:
            InvalidParameterError: a value is out of range.
        """
        stops = (self.stop,) if isinstance(self.stop, str) else self.stop
        values: dict[str, Any] = {name: getattr(self, name) for name in BY_NAME if name not in _NAMED_OTHERWISE}
        seed = None if self.seed is None else unsigned_seed(self.seed)
        biases = None if self.logit_bias is None else biases_by_id(self.logit_bias)
        values |= {"logit_bias": biases, "seed": seed, "stop": stops, **more}
        values = {name: _frozen(value) for name, value in values.items() if value is not None}
        return SamplingParams(max_tokens=max_tokens, **values)

    def call_fields(self) -> dict[str, Any]:
        """The fields of a Call that are no sampling parameters."""
        values = {name: getattr(self, name) for name in _OF_CALL} | {"id": self.request_id}
        return {name: value for name, value in values.items() if value is not None}

    def check_stream(self) -> None:
        """
        Raises:
            InvalidParameterError: options of a stream that is none, or what a stream has no place for.
        """
        if self.stream_options is not None and not self.stream:
            raise InvalidParameterError("stream_options", "set", "nothing where stream is not true")
        if self.prompt_logprobs is not None and self.stream:
            raise InvalidParameterError("prompt_logprobs", self.prompt_logprobs, "nothing with stream")


_NAMED_OTHERWISE = ("max_tokens", "logprobs")
_OF_CALL = ("model", "user", "priority", "queue_timeout", "timeout", "cache_salt", "use_prefix_cache")
assert set(_OF_CALL) < set(Call.__dataclass_fields__)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
