"""From events to a result."""

from collections.abc import Mapping
from typing import Any

from ..logprobs import TokenLogprob
from ..results import Usage
from .errors import ServerError
from .reading import Item
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


class BatchCollector:
    """Adds what comes for the items of a batch up, whose keys are their numbers."""

    def __init__(self, count: int) -> None:
        self._collectors = [Collector() for _ in range(count)]
        self._errors: dict[int, ServerError] = {}

    def add(self, item: Item) -> None:
        """Takes the next event of an item, or its failure."""
        key, event = item
        if isinstance(event, ServerError):
            self._errors[int(key)] = event
        else:
            self._collectors[int(key)].add(event)

    def results(self) -> list[Result | ServerError]:
        """Each item's answer, or what failed, in order."""
        return [self._errors.get(number) or each.result() for number, each in enumerate(self._collectors)]
