"""From lines to requests: chat template, tokens, and whether they fit. Runs beside the engine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from ...backends.errors import DistaffError, InvalidParameterError
from ...models.tokenizer import Tokenizer
from ..bad_words import spellings
from ..front.call import Call, Chat
from ..types import Kind, Request
from .asked import Asked, read_body
from .errors import LineError
from .line import Line


@dataclass(frozen=True)
class Prepared:
    """A line that is ready for the engine: a request for each call."""

    line: Line
    asked: Asked
    requests: tuple[Request, ...]

    @property
    def num_tokens(self) -> int:
        """Most tokens that it takes, prompts included."""
        return sum(len(each.prompt) + (each.params.max_tokens or 0) * each.params.n for each in self.requests)


class Preparer:
    """Makes requests of lines.

    Args:
        tokenizer: None where only token ids are understood.
        context: longest text in tokens, prompt included; None leaves that to the engine.
        now: the time that chat templates may print, the same for all lines of a job.
        job_seed: what lines without a seed draw theirs from.
        served_names: names that `model` may have; none lets it be any.
        priority: of all requests; higher ones wait for lower ones.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        *,
        context: int | None = None,
        now: datetime | None = None,
        job_seed: int = 0,
        served_names: Sequence[str] = (),
        priority: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._context = context
        self._now = now
        self._job_seed = job_seed
        self._served_names = tuple(served_names)
        self._priority = priority

    def check(self, line: Line) -> None:
        """Looks at the fields alone.

        Raises:
            LineError: one of them cannot be honoured.
        """
        read_body(line, job_seed=self._job_seed, served_names=self._served_names)

    def prepare(self, line: Line) -> Prepared:
        """
        Raises:
            LineError: the line cannot be answered.
        """
        asked = read_body(line, job_seed=self._job_seed, served_names=self._served_names)
        if any(call.kind is Kind.SCORE for call in asked.calls):
            raise LineError("unsupported_parameter", "max_tokens is 0: a file has no scores", param="echo")
        try:
            return Prepared(line, asked, tuple(map(self._request, asked.calls)))
        except InvalidParameterError as error:
            raise LineError("invalid_parameter", str(error), param=error.field) from error
        except DistaffError as error:
            raise LineError("invalid_prompt", str(error)) from error

    def _request(self, call: Call) -> Request:
        params = call.params
        words = ()
        if params.stop:
            self._text("stop")
        if params.bad_words:
            words = spellings(params.bad_words, self._text("bad_words"))
        ids = self._ids(call.prompt)
        room = None if self._context is None else self._context - len(ids)
        if room is not None and room < (call.kind is Kind.GENERATE):
            raise LineError(
                "context_length_exceeded",
                f"the prompt has {len(ids)} tokens, the context holds {self._context} with the answer",
            )
        if room is not None and call.kind is Kind.GENERATE and params.max_tokens is None:
            params = replace(params, max_tokens=room)  # so that its length is known when lines are put into order
        return Request(
            ids,
            params,
            call.kind,
            priority=self._priority - call.priority,  # the engine runs the lowest first
            cache_salt=call.cache_salt,
            use_prefix_cache=call.use_prefix_cache,
            pooling=call.pooling,
            bad_word_ids=words,
        )

    def _ids(self, prompt: str | tuple[int, ...] | Chat) -> tuple[int, ...]:
        if isinstance(prompt, tuple):
            return prompt
        tokenizer = self._text("text")
        if isinstance(prompt, str):
            return tuple(tokenizer.encode(prompt))
        variables = {name: value for name, value in prompt.variables.items() if name not in ("messages", "now")}
        text = tokenizer.render_chat(prompt.messages, now=self._now, **variables)
        return tuple(tokenizer.encode(text, add_special=False))

    def _text(self, what: str) -> Tokenizer:
        if self._tokenizer is None:
            raise LineError("invalid_prompt", f"the model has no tokenizer, so {what} cannot be served: give token ids")
        return self._tokenizer


class _Checking(Preparer):
    """Makes whole requests where only their fields would be looked at, so that lengths are seen too."""

    def check(self, line: Line) -> None:
        self.prepare(line)


def checking_preparer(
    model: str, *, offline: bool | None, context: int | None, seed: int = 0, names: Sequence[str] = ()
) -> Preparer:
    """A preparer that knows a model's tokenizer and context, without its weights.

    Raises:
        DistaffError: the model cannot be found or read.
    """
    from ...models.checkpoints import open_checkpoint, resolve_model
    from ...models.families import config_from_hf

    checkpoint = open_checkpoint(resolve_model(model, offline=offline))
    config = config_from_hf(checkpoint.hf_config, source=str(checkpoint.path))
    return _Checking(checkpoint.tokenizer(), context=context or config.max_positions, job_seed=seed, served_names=names)
