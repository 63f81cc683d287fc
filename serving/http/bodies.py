"""Bodies of OpenAI's two completion requests, and the Calls that they ask for.

Every field of OpenAI's API stands here: honoured, or refused by name with the reason (docs/serving/http.md).
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ...backends.errors import InvalidParameterError
from ..front import Call, Chat
from ..sampling_params import SamplingParams
from ..types import Kind
from .fields import Body, Items, Sampling, only

_NO_TOOLS = "tool calls are not parsed out of answers"
_NOT_KEPT = "nothing is kept"


class CompletionBody(Sampling):
    """POST /v1/completions."""

    DEFAULT_MAX_TOKENS: ClassVar[int] = 16
    MAX_CHOICES: ClassVar[int] = 4096

    prompt: str | Items[str] | Items[int] | Items[Items[int]]
    logprobs: int | None = None
    best_of: int | None = None
    suffix: Annotated[str | None, only("models here only go on from the end of a text", "")] = None

    def calls(self) -> list[Call]:
        """One for each prompt.

        Raises:
            InvalidParameterError: values out of range, or that contradict each other.
        """
        self.check_stream()
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise InvalidParameterError("best_of", self.best_of, f"n ({self.n or 1}): answers are not ranked")
        if self.echo and self.logprobs is not None and self.stream:
            raise InvalidParameterError("echo", True, "false with logprobs and stream: the prompt's come at the end")
        # The prompt's are computed once, with one number of the likeliest tokens.
        if self.echo and None not in (self.logprobs, self.prompt_logprobs) and self.logprobs != self.prompt_logprobs:
            expected = f"logprobs ({self.logprobs}) with echo, or nothing"
            raise InvalidParameterError("prompt_logprobs", self.prompt_logprobs, expected)
        scores = bool(self.echo) and self.max_tokens == 0
        if scores and self.stream:
            raise InvalidParameterError("stream", True, "false with echo and max_tokens 0: nothing is drawn")
        if scores:
            kind, params = Kind.SCORE, self._scoring()
        else:
            prompt_logprobs = self.logprobs if self.echo and self.prompt_logprobs is None else self.prompt_logprobs
            max_tokens = self.DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
            more = {"logprobs": self.logprobs, "prompt_logprobs": prompt_logprobs}
            kind, params = Kind.GENERATE, self.params(max_tokens=max_tokens, **more)
        fields = self.call_fields()
        prompts = self.prompts()
        ids = [fields.pop("id", "")]
        if len(prompts) > 1:
            ids = [ids[0] and f"{ids[0]}-{index}" for index in range(len(prompts))]
        return [Call(prompt, params, kind, id=id, **fields) for prompt, id in zip(prompts, ids, strict=True)]

    def prompts(self) -> list[str | tuple[int, ...]]:
        """The prompts, of which there may be one or a list, in text or tokens.

        Raises:
            InvalidParameterError: none at all, or too many.
        """
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if given and isinstance(given[0], int):
            return [tuple(token for token in given if isinstance(token, int))]
        prompts = [
            prompt if isinstance(prompt, str) else tuple(prompt) for prompt in given if not isinstance(prompt, int)
        ]
        most = self.MAX_CHOICES // max(1, self.n or 1)
        if not 1 <= len(prompts) <= most:
            raise InvalidParameterError("prompt", f"{len(prompts)} prompts", f"1 to {most} with n {self.n or 1}")
        return prompts

    def _scoring(self) -> SamplingParams:
        """A text is scored and none is drawn, so that a Request refuses by name what only a draw could honour."""
        num_top = self.logprobs if self.logprobs is not None else self.prompt_logprobs
        most = SamplingParams().max_tokens
        temperature = None if self.temperature == 0 else self.temperature  # of nothing that is drawn
        return self.params(max_tokens=most, echo=None, prompt_logprobs=num_top or None, temperature=temperature)


class TextPart(Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Items[TextPart]
    name: str | None = None
    reasoning_content: str | None = None
    refusal: Annotated[str | None, only("models here have no such channel")] = None
    audio: Annotated[Any, only("only text is understood")] = None
    tool_calls: Annotated[Any, only(_NO_TOOLS, [])] = None
    function_call: Annotated[Any, only(_NO_TOOLS)] = None

    def to_template(self) -> dict[str, str]:
        """As chat templates read it; they know `developer` by its older name."""
        content = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        more = {"name": self.name, "reasoning_content": self.reasoning_content}
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": content} | {key: value for key, value in more.items() if value is not None}


class ResponseFormat(Body):
    """`response_format`."""

    type: Annotated[str, only("answers are not constrained", "text")]


class ChatBody(Sampling):
    """POST /v1/chat/completions."""

    messages: Items[Message] = Field(min_length=1)
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None
    response_format: ResponseFormat | None = None
    modalities: Annotated[Items[str] | None, only("only text is made", ["text"])] = None
    store: Annotated[bool | None, only(_NOT_KEPT, False)] = None
    service_tier: Annotated[str | None, only("there is one tier; see priority", "auto", "default")] = None
    safety_identifier: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None

    tools: Annotated[Any, only(_NO_TOOLS, [])] = None
    tool_choice: Annotated[Any, only(_NO_TOOLS, "none")] = None
    parallel_tool_calls: Annotated[Any, only(_NO_TOOLS, False)] = None
    functions: Annotated[Any, only(_NO_TOOLS, [])] = None
    function_call: Annotated[Any, only(_NO_TOOLS, "none")] = None
    audio: Annotated[Any, only("only text is made")] = None
    metadata: Annotated[Any, only(_NOT_KEPT, {})] = None
    moderation: Annotated[Any, only("nothing is moderated")] = None
    prediction: Annotated[Any, only("nothing is predicted from a given text")] = None
    prompt_cache_key: Annotated[Any, only("prefixes are found without it; see cache_salt")] = None
    prompt_cache_options: Annotated[Any, only("prefixes are found without it; see use_prefix_cache")] = None
    prompt_cache_retention: Annotated[Any, only("prefixes stay as long as there is room")] = None
    reasoning_effort: Annotated[Any, only("models here have no such setting; see chat_template_kwargs")] = None
    verbosity: Annotated[Any, only("models here have no such setting")] = None
    web_search_options: Annotated[Any, only("nothing is searched")] = None

    def calls(self) -> list[Call]:
        """The one that is asked for.

        Raises:
            InvalidParameterError: values out of range, or that contradict each other.
        """
        self.check_stream()
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidParameterError("top_logprobs", self.top_logprobs, "logprobs true with it")
        max_tokens = self._max_tokens()
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        try:
            params = self.params(max_tokens=max_tokens, logprobs=logprobs)
        except InvalidParameterError as error:
            raise _renamed(error, self._names()) from None
        fields: dict[str, Any] = {"user": self.safety_identifier or ""} | self.call_fields()
        return [Call(Chat(self._messages(), self._variables()), params, **fields)]

    def _max_tokens(self) -> int | None:
        """Without a limit an answer may fill the context."""
        given = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(given) > 1:
            raise InvalidParameterError("max_tokens", self.max_tokens, "the same as max_completion_tokens, or nothing")
        return given.pop() if given else None

    def _names(self) -> Mapping[str, str]:
        names = {"logprobs": "top_logprobs"}
        return names | ({} if self.max_tokens is not None else {"max_tokens": "max_completion_tokens"})

    def _messages(self) -> tuple[dict[str, str], ...]:
        return tuple(message.to_template() for message in self.messages)

    def _variables(self) -> dict[str, Any]:
        more = {} if self.add_generation_prompt is None else {"add_generation_prompt": self.add_generation_prompt}
        return {**(self.chat_template_kwargs or {}), **more}


def _renamed(error: InvalidParameterError, names: Mapping[str, str]) -> InvalidParameterError:
    """The same with the name that the client used."""
    return InvalidParameterError(names.get(error.field, error.field), error.given, error.expected)
