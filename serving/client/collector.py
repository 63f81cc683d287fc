"""From events to a result."""

from collections.abc import Mapping
from typing import Any

from ..logprobs import TokenLogprob
from ..results import Usage
from .results import Admitted, Choice, Delta, Event, Finished, Result, Timings


class Collector:
    """Adds the events of one request up."""

    def __init__(self) -> None:
        self._id = ""
        self._params: Mapping[str, Any] = {}
        self._texts: dict[int, list[str]] = {}
        self._tokens: dict[int, list[int]] = {}
        self._logprobs: dict[int, list[TokenLogprob]] = {}
        self._ended: dict[int, Finished] = {}
        self._usage = Usage(0, 0)
        self._timings = Timings()
        self._prompt_logprobs: tuple[TokenLogprob, ...] = ()

    def add(self, event: Event) -> None:
        """Takes the next event."""
        if isinstance(event, Delta):
            self._texts.setdefault(event.index, []).append(event.text)
            self._tokens.setdefault(event.index, []).extend(event.token_ids)
            self._logprobs.setdefault(event.index, []).extend(event.logprobs)
        elif isinstance(event, Admitted):
            self._id, self._params = event.id, event.params
            self._usage = Usage(event.prompt_tokens, 0, event.cached_tokens)
        else:
            self._ended[event.index] = event
            self._usage = event.usage or self._usage
            self._timings = event.timings or self._timings
            self._prompt_logprobs = event.prompt_logprobs or self._prompt_logprobs

    def result(self) -> Result:
        """What has come. A choice that has not ended has "unknown" for its reason."""
        indices = sorted({0, *self._texts, *self._ended})
        return Result(
            self._id,
            tuple(self._choice(index) for index in indices),
            self._usage,
            self._timings,
            self._params,
            self._prompt_logprobs,
        )

    def _choice(self, index: int) -> Choice:
        ended = self._ended.get(index)
        return Choice(
            index,
            "".join(self._texts.get(index, ())),
            tuple(self._tokens.get(index, ())),
            "unknown" if ended is None else ended.reason,
            None if ended is None else ended.stopped_by,
            tuple(self._logprobs.get(index, ())),
        )
