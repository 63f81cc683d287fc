"""Answers as OpenAI's clients read them."""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..front import Delta, Reason
from ..logprobs import TokenLogprob, finite
from ..results import Usage
from .bodies import ChatBody, CompletionBody
from .spelling import Offsets, Spelling


@dataclass
class Answer:
    """One choice of a response that is not streamed, as it comes together."""

    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: Reason | None = None
    stopped_by: str | int | None = None

    def add(self, delta: Delta) -> None:
        self.text.append(delta.text)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs


class Shape:
    """What both kinds of response share.

    Args:
        model: as the client named it.
        spelling: of the model's tokens.
        fingerprint: of the server: the same one gives the same tokens for the same seed.
        includes_usage: whether the stream ends with the usage.
        returns_ids: whether choices have token ids beside their text.
        wants_logprobs: whether choices have log-probabilities.
        echoes: whether the log-probabilities of the prompt stand before those of the answer.
        tells_prompt: whether choices have those of the prompt apart.
    """

    kind: ClassVar[str]
    prefix: ClassVar[str]

    def __init__(
        self,
        model: str,
        spelling: Spelling,
        *,
        fingerprint: str,
        includes_usage: bool = False,
        returns_ids: bool = False,
        wants_logprobs: bool = False,
        echoes: bool = False,
        tells_prompt: bool = False,
    ) -> None:
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"
        self._head = {"id": self.id, "created": int(time.time()), "model": model, "system_fingerprint": fingerprint}
        self._spelling = spelling
        self._includes_usage = includes_usage
        self._returns_ids = returns_ids
        self._wants_logprobs = wants_logprobs
        self._echoes = echoes
        self._tells_prompt = tells_prompt

    @property
    def includes_usage(self) -> bool:
        return self._includes_usage

    def response(self, choices: Sequence[Mapping[str, Any]], usage: Usage) -> dict[str, Any]:
        """A whole response."""
        return {"object": self.kind, **self._head, "choices": list(choices), "usage": usage_object(usage)}

    def chunk(self, choices: Sequence[Mapping[str, Any]], usage: Usage | None = None) -> dict[str, Any]:
        """A part of a stream."""
        value = {"object": self._chunk_kind(), **self._head, "choices": list(choices)}
        if self._includes_usage:
            value["usage"] = None if usage is None else usage_object(usage)
        return value

    def begin(self, index: int) -> dict[str, Any] | None:
        """The choice of the first chunk, if it says anything."""
        return None

    def delta(self, index: int, delta: Delta) -> dict[str, Any]:
        """A choice in the middle of a stream."""
        raise NotImplementedError

    def end(self, index: int, reason: Reason, stopped_by: str | int | None) -> dict[str, Any]:
        """A choice at its end."""
        raise NotImplementedError

    def choice(self, index: int, answer: Answer, prompt: "Sequence[TokenLogprob | None]" = ()) -> dict[str, Any]:
        """A whole choice.

        Args:
            prompt: the log-probabilities of the prompt, where it was computed with them.
        """
        assert answer.reason is not None
        value = {
            "index": index,
            **self._content(answer, prompt if self._echoes else ()),
            "finish_reason": answer.reason.finish.value,
            "stop_reason": _stop_reason(answer.reason, answer.stopped_by),
            **self._ids(answer.token_ids),
        }
        if self._tells_prompt:
            value["prompt_logprobs"] = [None if entry is None else entry.by_id(self._spelling.name) for entry in prompt]
        return value

    def _content(self, answer: Answer, prompt: "Sequence[TokenLogprob | None]") -> dict[str, Any]:
        """What a whole choice says; `prompt` is echoed."""
        raise NotImplementedError

    def _chunk_kind(self) -> str:
        return self.kind

    def _ids(self, token_ids: Sequence[int]) -> dict[str, Any]:
        return {"token_ids": list(token_ids)} if self._returns_ids else {}


class CompletionShape(Shape):
    """Of /v1/completions."""

    kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, model: str, spelling: Spelling, **more: Any) -> None:
        super().__init__(model, spelling, **more)
        self._offsets: dict[int, Offsets] = {}

    def delta(self, index: int, delta: Delta) -> dict[str, Any]:
        logprobs = None
        if self._wants_logprobs:
            offsets = self._offsets.setdefault(index, self._spelling.offsets())
            logprobs = self._logprobs(delta.logprobs, offsets)
        choice = {"index": index, "text": delta.text, "logprobs": logprobs, "finish_reason": None}
        return {**choice, **self._ids(delta.token_ids)}

    def end(self, index: int, reason: Reason, stopped_by: str | int | None) -> dict[str, Any]:
        choice = {"index": index, "text": "", "logprobs": None, "finish_reason": reason.finish.value}
        return {**choice, "stop_reason": _stop_reason(reason, stopped_by)}

    def _content(self, answer: Answer, prompt: "Sequence[TokenLogprob | None]") -> dict[str, Any]:
        logprobs = None
        if self._wants_logprobs:
            logprobs = self._logprobs([*prompt, *answer.logprobs], self._spelling.offsets(), first_of=answer.token_ids)
        return {"text": "".join(answer.text), "logprobs": logprobs}

    def _logprobs(
        self, entries: "Sequence[TokenLogprob | None]", offsets: Offsets, first_of: Sequence[int] = ()
    ) -> dict[str, Any]:
        """The older of OpenAI's two forms. The first token of an echoed prompt has no log-probability, and no entry to
        tell which one it is: that is the first of `first_of`."""
        ids = [first_of[0] if entry is None else entry.token_id for entry in entries]
        tops = [None if entry is None else self._top(entry) for entry in entries]
        return {
            "tokens": [self._spelling.name(token) for token in ids],
            "token_logprobs": [None if entry is None else finite(entry.logprob) for entry in entries],
            "top_logprobs": tops,
            "text_offset": offsets.add(ids),
        }

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        """The most likely tokens by name, and the token itself; of two tokens of one name the likelier counts."""
        top: dict[str, float] = {}
        for token, logprob in (*entry.top, (entry.token_id, entry.logprob)):
            top.setdefault(self._spelling.name(token), finite(logprob))
        return top


class ChatShape(Shape):
    """Of /v1/chat/completions."""

    kind = "chat.completion"
    prefix = "chatcmpl"

    def begin(self, index: int) -> dict[str, Any] | None:
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def delta(self, index: int, delta: Delta) -> dict[str, Any]:
        logprobs = self._logprobs(delta.logprobs) if self._wants_logprobs else None
        choice = {"index": index, "delta": {"content": delta.text}, "logprobs": logprobs, "finish_reason": None}
        return {**choice, **self._ids(delta.token_ids)}

    def end(self, index: int, reason: Reason, stopped_by: str | int | None) -> dict[str, Any]:
        choice = {"index": index, "delta": {}, "logprobs": None, "finish_reason": reason.finish.value}
        return {**choice, "stop_reason": _stop_reason(reason, stopped_by)}

    def _content(self, answer: Answer, prompt: "Sequence[TokenLogprob | None]") -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(answer.text), "refusal": None}
        return {"message": message, "logprobs": self._logprobs(answer.logprobs) if self._wants_logprobs else None}

    def _chunk_kind(self) -> str:
        return "chat.completion.chunk"

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The newer of OpenAI's two forms."""
        content = [
            {
                **self._token(entry.token_id, entry.logprob),
                "top_logprobs": [self._token(token, logprob) for token, logprob in entry.top],
            }
            for entry in entries
        ]
        return {"content": content, "refusal": None}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        data = self._spelling.to_bytes(token_id)
        name = self._spelling.name(token_id)
        return {"token": name, "logprob": finite(logprob), "bytes": None if data is None else list(data)}


def shape_of(body: ChatBody | CompletionBody, model: str, spelling: Spelling, *, fingerprint: str = "") -> Shape:
    """What answers a body looks like this.

    Args:
        model: what it is called where the body does not name it.
        spelling, fingerprint: as Shape has them.
    """
    is_chat = isinstance(body, ChatBody)
    return (ChatShape if is_chat else CompletionShape)(
        body.model or model,
        spelling,
        fingerprint=fingerprint,
        includes_usage=body.includes_usage,
        returns_ids=bool(body.return_token_ids),
        wants_logprobs=bool(body.logprobs) if is_chat else body.logprobs is not None,
        echoes=bool(body.echo),
        tells_prompt=body.prompt_logprobs is not None,
    )


def usage_object(usage: Usage) -> dict[str, Any]:
    """OpenAI's `usage`."""
    counts = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
    details = {"prompt_tokens_details": {"cached_tokens": usage.cached_tokens}}
    return {**counts, "total_tokens": usage.total_tokens, **details}


def _stop_reason(reason: Reason, stopped_by: str | int | None) -> str | int | None:
    """The stop text or token that ended an answer, not the model's own end."""
    return stopped_by if reason in (Reason.STOP_STRING, Reason.STOP_TOKEN) else None
