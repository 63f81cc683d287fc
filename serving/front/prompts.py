"""From a Call to a Request: chat template, tokens, spellings. Runs in worker threads, beside the event loop."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...backends.errors import DistaffError, InvalidParameterError, UnsupportedError
from ...models.errors import ChatTemplateError, TokenizerError
from ...models.tokenizer import Tokenizer
from ..bad_words import spellings
from ..errors import ContextLengthError, EmptyPromptError
from ..types import Kind, Request
from .call import Call, Chat
from .card import ModelCard
from .errors import InvalidPromptError
from .limits import FrontLimits

_LONGEST_TOKEN = 64
"""Characters of a token, on average over a text, that no text reaches."""


class Prompts:
    """Makes token ids of what clients send.

    Args:
        tokenizer: None where only token ids are understood.
        card: the model.
        limits: how long a prompt may be.
    """

    def __init__(self, tokenizer: Tokenizer | None, card: ModelCard, limits: FrontLimits) -> None:
        self._tokenizer = tokenizer
        self._card = card
        self._limits = limits

    def request(self, call: Call, id: str) -> Request:
        """What the engine is asked.

        Raises:
            UsageError: the call cannot be honoured; no message has the prompt in it.
        """
        most = self._limits.max_priority
        if abs(call.priority) > most:
            raise InvalidParameterError("priority", call.priority, f"a whole number from -{most} to {most}")
        if call.params.stop:
            self._text("stop texts")
        words: tuple[tuple[int, ...], ...] = ()
        if call.params.bad_words:
            try:
                words = spellings(call.params.bad_words, self._text("bad_words"))
            except TokenizerError as error:
                raise self._invalid(error, "bad_words") from error
        return Request(
            self._ids(call),
            call.params,
            call.kind,
            priority=-call.priority,  # the engine runs the lowest first
            cache_salt=call.cache_salt,
            use_prefix_cache=call.use_prefix_cache,
            pooling=call.pooling,
            id=id,
            bad_word_ids=words,
            is_chat=isinstance(call.prompt, Chat),
        )

    def tokenize(self, text: str | Chat, *, add_special: bool = True) -> list[int]:
        """Token ids. A conversation's template writes special tokens out itself."""
        tokenizer = self._text("text")
        try:
            if isinstance(text, Chat):
                return tokenizer.encode(self.render(text), add_special=False)
            self._check_size([text])
            return tokenizer.encode(text, add_special=add_special)
        except TokenizerError as error:
            raise self._invalid(error, "prompt") from error

    def render(self, chat: Chat) -> str:
        """The prompt of a conversation."""
        tokenizer = self._text("messages")
        self._check_size(chat.messages)
        if not chat.messages:
            raise EmptyPromptError("messages holds nothing, expected at least one message")
        try:
            return tokenizer.render_chat(chat.messages, **_variables(chat.variables))
        except ChatTemplateError as error:
            raise self._invalid(error, "messages") from error

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        for token in ids:
            if not 0 <= token < self._card.vocab_size:
                raise InvalidParameterError("token_ids", token, f"token ids from 0 to {self._card.vocab_size - 1}")
        return self._text("text").decode(ids, skip_special=False)

    def _ids(self, call: Call) -> tuple[int, ...]:
        prompt = call.prompt
        if isinstance(prompt, tuple):
            most = self._card.context - (call.kind is Kind.GENERATE)
            if len(prompt) > most:  # before anything is done with millions of them
                raise ContextLengthError(
                    f"the prompt has {len(prompt)} tokens, the context holds {self._card.context} with the answer; "
                    f"shorten the prompt to at most {most} tokens"
                )
            return prompt
        if prompt == "":
            raise EmptyPromptError("the prompt is empty, expected at least one token of text")
        return tuple(self.tokenize(prompt))

    def _text(self, what: str) -> Tokenizer:
        if self._tokenizer is None:
            raise UnsupportedError(f"this model has no tokenizer, so {what} cannot be served: send token ids")
        return self._tokenizer

    def _check_size(self, texts: Sequence[Any]) -> None:
        try:
            size, most = _size(texts), self._limits.max_prompt_bytes
        except RecursionError:
            raise InvalidPromptError("the messages are nested too deep", "messages") from None
        if size > most:
            raise InvalidPromptError(f"the prompt has about {size} bytes, expected at most {most}")
        if size > _LONGEST_TOKEN * self._card.context:  # before all of it is tokenised in vain
            raise ContextLengthError(
                f"the prompt has about {size} characters, far more than a context of {self._card.context} tokens "
                "holds; shorten it"
            )

    def _invalid(self, error: DistaffError, field: str) -> InvalidPromptError:
        """The same without where the model lies on this machine."""
        message, tokenizer = str(error), self._tokenizer
        template = None if tokenizer is None else tokenizer.chat_template
        for source in (tokenizer and tokenizer.source, template and template.source):
            if source:
                message = message.removeprefix(f"{source}: ").replace(source, "the model")
        return InvalidPromptError(message, field)


def _variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    for name in ("messages", "now"):
        if name in variables:
            raise InvalidParameterError(f"variables.{name}", "...", "a name that the server does not set itself")
    return dict(variables)


def _size(value: Any) -> int:
    """Characters in a JSON value, about."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, Sequence) else 1
