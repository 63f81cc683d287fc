"""One call as its reader sees it. All of it happens in the event loop."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType

from ...backends.errors import DistaffError
from ..generation import Result, Start
from ..logprobs import PromptLogprobs
from ..results import Completion, FinishReason, Timings, TokenEvent, Usage
from ..types import Request
from .buffer import Buffer
from .counters import FrontCounters
from .errors import CancelledByClientError, DeadlineError, DrainingError, SlowReaderError
from .events import Admitted, Event, Finished, Reason, reason_of
from .relay import End, Item


class Stream(AsyncIterator[Event]):
    """Admitted, then the deltas of each choice and its Finished; ends behind the last one.

    A call that the front ends before it was admitted, and any that fails, raises instead; one that is ended later
    tells so by the reason of its Finished events. Scores and embeddings have no deltas: `result` waits for them.

    Attributes:
        id: the call's name.
        cause: why it was ended from outside, if it was.
        admitted: the first event, once it has come.
        finished: the last event of each choice that has ended.
        usage, timings: once it has ended, of what was done until then.
        prompt_token_ids: what the prompt came to.
        prompt_logprobs: where asked for, from the first token of choice 0 on.
        opened: when it came, by the front's clock.
    """

    def __init__(
        self, id: str, *, counters: FrontCounters, most: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.id = id
        self.cause: Reason | None = None
        self.admitted: Admitted | None = None
        self.usage = Usage(0, 0)
        self.timings = Timings()
        self.prompt_token_ids: tuple[int, ...] = ()
        self.prompt_logprobs: PromptLogprobs | None = None
        self.error: BaseException | None = None
        self.finished: dict[int, Finished] = {}
        self._result: Result | None = None
        self._request: Request | None = None
        self._counters = counters
        self._clock = clock
        self._buffer = Buffer(most)
        self._counts: list[int] = []
        self._ended = self._discards = False
        self.opened = self._read_at = clock()
        self._waiter: asyncio.Future[None] | None = None
        self._abort: Callable[[], None] | None = None
        self._on_admitted: list[Callable[[Stream], None]] = []
        self._on_end: list[Callable[[Stream], None]] = []

    @property
    def ended(self) -> bool:
        """Whether the engine has let go of it. There may still be something to read."""
        return self._ended

    @property
    def submitted(self) -> bool:
        """Whether the engine ever had it."""
        return self._request is not None

    @property
    def outcome(self) -> str:
        """How it ended: a Reason, or "done" for scores and embeddings."""
        if self.cause is not None:
            return self.cause.value
        if self.error is not None:
            return Reason.ERROR.value
        return next((end.reason.value for end in self.finished.values()), "done")

    @property
    def completion(self) -> Completion | None:
        """What it came to, if it was to generate text and has ended; cut short where there is a `cause`."""
        return self._result if isinstance(self._result, Completion) else None

    # Reading

    async def __anext__(self) -> Event:
        """
        Raises:
            DistaffError: what the call failed with.
        """
        while not self._buffer.events:
            if self._ended:
                if self.error is not None:
                    raise self.error
                raise StopAsyncIteration
            await self._wait()
        self._read_at = self._clock()
        return self._buffer.pop()

    def pending(self) -> list[Event]:
        """What has come and was not read; waits for nothing."""
        self._read_at = self._clock()
        return [self._buffer.pop() for _ in range(len(self._buffer))]

    async def result(self) -> Result:
        """A Completion, Score or Embedding; waits for the end, and lets go of the events that were not read.

        Raises:
            DistaffError: what the call failed with.
        """
        self._discards = True
        self._buffer.clear()
        while not self._ended:
            await self._wait()
        if self.error is not None:
            raise self.error
        assert self._result is not None
        return self._result

    async def close(self) -> None:
        """Ends the request, if it has not ended; slot and pages are free within one step."""
        self.end(Reason.CANCELLED)

    def end(self, cause: Reason) -> None:
        """The same, for a reason; the first one counts."""
        if self._ended or self.cause is not None:
            return
        self.cause = cause
        if self._abort is not None:
            self._abort()

    def idle_seconds(self, now: float) -> float:
        """For how long there has been something that nobody read."""
        return now - self._read_at if self._buffer and not self._discards else 0.0

    def when_admitted(self, call: Callable[["Stream"], None]) -> None:
        """Calls this in the loop when the request has its slot, if it gets one."""
        self._on_admitted.append(call)

    def when_ended(self, call: Callable[["Stream"], None]) -> None:
        """Calls this in the loop when the engine has let go of the request."""
        self._on_end.append(call)

    async def __aenter__(self) -> "Stream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def cause_error(self) -> DistaffError:
        """What a reader is told who gets no answer because of `cause`."""
        if self.cause is Reason.DEADLINE:
            return DeadlineError(f"the time given for request {self.id} was over before it was answered")
        if self.cause is Reason.DRAINED:
            return DrainingError(f"the server went down before request {self.id} was answered: try again", 1.0)
        if self.cause is Reason.SLOW_READER:
            return SlowReaderError(f"nobody read the answer of request {self.id}")
        return CancelledByClientError(f"request {self.id} was cancelled before it was answered")

    # Filling

    def runs(self, request: Request, abort: Callable[[], None]) -> None:
        """The engine has the request; `abort` ends it."""
        self._request = request
        self.prompt_token_ids = request.prompt
        self._counts = [0] * request.params.n
        self._abort = abort
        if self.cause is not None:
            abort()

    def refuse(self, error: BaseException) -> None:
        """It ends without the engine: before that had it, or because it does not let go of it."""
        if not self._ended:
            self._end(End(None, error, Usage(len(self.prompt_token_ids), 0), self.timings))
            self._wake()

    def receive(self, item: Item) -> None:
        """The next thing that the engine tells."""
        if self._ended:
            return
        if isinstance(item, TokenEvent):  # nearly all are
            self._token(item)
        elif isinstance(item, Start):
            self._start(item)
        elif isinstance(item, PromptLogprobs):
            self.prompt_logprobs = item
        else:
            self._end(item)
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done() and (self._ended or not self._discards):
            waiter.set_result(None)

    def _start(self, start: Start) -> None:
        self.admitted = Admitted(
            self.id, start.queue_seconds, len(self.prompt_token_ids), start.cached_tokens, start.params
        )
        self._add(self.admitted)
        for call in self._on_admitted:
            call(self)

    def _token(self, event: TokenEvent) -> None:
        index, token = event.choice, event.token_id
        token_ids: tuple[int, ...] = ()
        if token is not None:
            token_ids = (token,)
            self._counts[index] += 1
            self._counters.tokens += 1
        elif event.finish_reason is None:  # the prompt's echo
            token_ids = self.prompt_token_ids
        if not self._discards and (token_ids or event.text):
            if not self._buffer.events:
                self._read_at = self._clock()
            logprobs = () if event.logprob is None else (event.logprob,)
            self._buffer.add_delta(index, event.text, token_ids, logprobs)
        finish = event.finish_reason
        if finish is not None and finish is not FinishReason.ERROR and self.admitted is not None:
            assert self._request is not None
            count = self._counts[index]
            reason = reason_of(finish, event.stopped_by, count, self._request.params, self.cause)
            self.finished[index] = Finished(index, reason, event.stopped_by, count)
            self._add(self.finished[index])

    def _end(self, end: End) -> None:
        self._ended = True
        self._abort = None
        self._result, self.error, self.usage, self.timings = end.result, end.error, end.usage, end.timings
        if self.cause is not None and (self.admitted is None or end.result is None):
            self.error = self.cause_error()
        self._counters.joined += self._buffer.joined
        for call in self._on_end:
            call(self)

    def _add(self, event: Event) -> None:
        if not self._discards:
            if not self._buffer:
                self._read_at = self._clock()
            self._buffer.add(event)

    async def _wait(self) -> None:
        assert self._waiter is None, "a stream has one reader"
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
