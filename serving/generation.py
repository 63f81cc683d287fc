"""The caller's end of a request: an iterator of token events."""

import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from .logprobs import PromptLogprobs
from .results import Completion, Embedding, Score, Timings, TokenEvent, Usage
from .sampling_params import SamplingParams

type Result = Completion | Score | Embedding
type Pump = Callable[[], Any]
"""Makes the engine go one step on."""


@dataclass(frozen=True)
class Start:
    """A request has its first slot.

    Attributes:
        queue_seconds: that it waited for it.
        cached_tokens: of the prompt, found computed.
        params: with the seed and the most tokens that its answer may have filled in.
    """

    queue_seconds: float
    cached_tokens: int
    params: SamplingParams


@runtime_checkable
class Outlet(Protocol):
    """Where the engine puts what a request comes to; one thread at a time.

    Attributes:
        ended: whether `end` was called; the engine looks at it.
    """

    ended: bool

    def begin(self, start: Start) -> None: ...

    def read(self, prompt: PromptLogprobs) -> None:
        """The prompt is read, where its log-probabilities were asked for; before the first token of choice 0."""
        ...

    def put(self, event: TokenEvent) -> None: ...

    def end(self, result: Result | None, error: BaseException | None, usage: Usage, timings: Timings) -> None: ...


class Outbox:
    """What a request has to tell: the engine puts, a Generation takes; each in any thread."""

    def __init__(self) -> None:
        self.result: Result | None = None
        self.error: BaseException | None = None
        self.ended = False
        self._events: queue.SimpleQueue[TokenEvent | None] = queue.SimpleQueue()

    def begin(self, start: Start) -> None:
        """Readers of a Generation find all of it in the result."""

    def read(self, prompt: PromptLogprobs) -> None:
        """This too."""

    def put(self, event: TokenEvent) -> None:
        self._events.put(event)

    def end(self, result: Result | None, error: BaseException | None, usage: Usage, timings: Timings) -> None:
        """Nothing comes any more."""
        self.result, self.error, self.ended = result, error, True
        self._events.put(None)

    def get(self, pump: Pump | None) -> TokenEvent | None:
        """The next event, None at the end; `pump` makes events where no other thread does."""
        while pump is not None and self._events.empty():
            pump()
        return self._events.get()

    def empty(self) -> bool:
        return self._events.empty()


class Generation(Iterator[TokenEvent]):
    """Yields a request's events as they come and ends with it.

    Leaving it early (`close`, a `with` block, or dropping it) ends the request and frees what it holds.

    Args:
        outbox: where the engine puts events.
        pump: gives what makes the engine go on, None where a thread does that.
        abort: ends the request.
    """

    def __init__(self, outbox: Outbox, pump: Callable[[], Pump | None], abort: Callable[[], None]) -> None:
        self._outbox = outbox
        self._pump = pump
        self._abort = abort
        self._ended = False

    def __next__(self) -> TokenEvent:
        """
        Raises:
            DistaffError: what the request failed with.
        """
        event = None if self._ended else self._outbox.get(self._pump())
        if event is not None:
            return event
        self._ended = True
        if self._outbox.error is not None:
            raise self._outbox.error
        raise StopIteration

    def poll(self) -> Iterator[TokenEvent]:
        """The events that have come since; waits for nothing."""
        while not self._ended and not self._outbox.empty():
            event = next(self, None)
            if event is not None:
                yield event

    def result(self) -> Result:
        """What the request came to: a Completion, Score or Embedding; waits for its end.

        Raises:
            DistaffError: what the request failed with.
        """
        for _ in self:
            pass
        assert self._outbox.result is not None
        return self._outbox.result

    def completion(self) -> Completion:
        """The whole answer; waits for its end.

        Raises:
            DistaffError: what the request failed with.
        """
        result = self.result()
        assert isinstance(result, Completion)
        return result

    def close(self) -> None:
        """Ends the request, if it has not ended."""
        if not self._outbox.ended:
            self._abort()

    def __enter__(self) -> "Generation":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
