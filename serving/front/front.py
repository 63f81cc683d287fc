"""The engine for an event loop."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from enum import StrEnum
from functools import partial
from types import TracebackType
from typing import Any

from ...models.tokenizer import Tokenizer
from ..engine import Engine
from ..errors import DeviceError, EngineClosedError
from ..metrics import Metrics
from ..replicas import Replicas
from ..types import Kind
from .admission import Admission, Place
from .call import Call, Chat
from .card import ModelCard
from .counters import FrontCounters
from .errors import DeadlineError, DrainingError, DuplicateIdError, NotReadyError, UnknownModelError
from .events import Reason
from .limits import FrontLimits, TenantLimits
from .load import Load
from .prompts import Prompts
from .relay import Relay, Wire
from .status import status_of
from .stream import Stream

_WORKERS = 2
_LAST_SECONDS = 1.0
"""For the engine to let go of requests before it is closed on them."""
_CHECK_SECONDS = 0.05
"""How often streams and the engine are looked after."""


class State(StrEnum):
    """What a front does with new calls: only READY takes them."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"
    CLOSED = "closed"


class Front:
    """Takes calls in, and gives each a Stream. One event loop, one front; everything but `metrics` is used in that
    loop.

    Args:
        engine: what runs the requests; the front starts its thread, and closes it.
        tokenizer: None for token ids alone.
        card: what is served.
        limits: how much is taken in.
        served_names: the names that a call's `model` may have; none: any.
        clock: seconds.

    Attributes:
        state: whether calls are taken; `on_state` tells of its changes.
        counters: what it counts.
        failure: why the state is FAILED, if it is.
        hangs: whether that is because the device does not come back; threads that wait for it stay.
    """

    def __init__(
        self,
        engine: Engine | Replicas,
        *,
        tokenizer: Tokenizer | None,
        card: ModelCard,
        limits: FrontLimits | None = None,
        served_names: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.card = card
        self.limits = limits = limits or FrontLimits()
        self.served_names = tuple(served_names)
        self.counters = FrontCounters()
        self.state = State.STARTING
        self.failure: BaseException | None = None
        self.hangs = False
        self._clock = clock
        self._prompts = Prompts(tokenizer, card, limits)
        self._admission = Admission(limits, clock)
        self._streams: dict[tuple[str, str], Stream] = {}
        self._observers: list[Callable[[State], None]] = []
        self._watchers: list[Callable[[Call, Stream], None]] = []
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="distaff-front")
        self._relay: Relay | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def metrics(self) -> Metrics:
        """The engine's."""
        return self.engine.metrics

    def on_state(self, call: Callable[[State], None]) -> None:
        """Calls this in the loop with each new state."""
        self._observers.append(call)

    def on_ended(self, watcher: Callable[[Call, Stream], None]) -> None:
        """Calls this in the loop with each call that was let in, once the engine has let go of it."""
        self._watchers.append(watcher)

    @property
    def names(self) -> tuple[str, ...]:
        """What clients may call the model, the first one above all."""
        return self.served_names or (self.card.name,)

    # Lifetime

    async def start(self) -> None:
        """Starts the engine; returns when it can serve, which the rest of its compilation may follow.

        Raises:
            DistaffError: it cannot.
        """
        loop = asyncio.get_running_loop()
        self._relay = Relay(loop, self.counters)
        self.engine.after_round(self._relay.flush)
        self.engine.start()
        self._keeper = asyncio.create_task(self._keep(), name="distaff-front")
        warming = loop.run_in_executor(None, self.engine.warm_up)
        while not (warming.done() or self.engine.is_ready):
            await asyncio.wait([warming], timeout=_CHECK_SECONDS)
        if warming.done():
            await warming
        else:
            warming.add_done_callback(self._warmed)
        if self.state is State.STARTING:
            self._enter(State.READY)

    async def drain(self, grace: float) -> None:
        """Takes no calls any more, gives those that run `grace` seconds, and ends the rest (Reason.DRAINED)."""
        if self.state in (State.STARTING, State.READY):
            self._enter(State.DRAINING)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), grace)
        await self._end_streams(self.limits.hang_seconds)
        if self._streams:
            self.give_up()

    def give_up(self) -> None:
        """The device does not come back: whoever waits for it is told so, and nobody waits for the engine's end."""
        self.hangs = True
        hung = DeviceError(f"the device has not come back from a step for {self.limits.hang_seconds:g} s")
        self._fail(hung)
        for stream in tuple(self._streams.values()):
            stream.end(Reason.DRAINED)  # to its reader it is a server that goes down: others may answer
            stream.refuse(hung)

    async def close(self) -> None:
        """Ends every call and the engine, unless that hangs. Closing again does nothing."""
        if self.state is State.CLOSED:
            return
        self._enter(State.CLOSED)
        await self._end_streams(_LAST_SECONDS)
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        if not self.hangs:
            await asyncio.get_running_loop().run_in_executor(None, self.engine.close)
            await asyncio.sleep(0)  # what the engine's end told is delivered before this returns
        self._workers.shutdown(wait=False, cancel_futures=True)

    async def __aenter__(self) -> "Front":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # Calls

    async def open(self, call: Call) -> Stream:
        """Takes a call in; its text is tokenised beside the loop.

        Raises:
            OverloadedError, DrainingError, NotReadyError: not now; `retry_after` says when.
            UnknownModelError, DuplicateIdError, UsageError: never like this.
            DeadlineError, CancelledByClientError: it was over before the engine had it.
            DeviceError: the engine is broken.
        """
        try:
            return await self._open(call)
        except BaseException as error:
            self.counters.refused[status_of(error).kind] += 1
            raise

    def has(self, id: str, *, tenant: str = "") -> bool:
        """Whether a call of this tenant by this name is under way."""
        return (tenant, id) in self._streams

    def cancel(self, id: str, *, tenant: str = "") -> bool:
        """Ends a call of this tenant; whether there was one. Cancelling again does nothing."""
        stream = self._streams.get((tenant, id))
        if stream is None or stream.cause is not None:
            return False
        stream.end(Reason.CANCELLED)
        return True

    async def tokenize(self, text: str | Chat, *, add_special: bool = True) -> list[int]:
        """Token ids of a text, or of a conversation ready for its answer.

        Raises:
            UsageError: no token ids can be made of it.
        """
        return await self._beside(lambda: self._prompts.tokenize(text, add_special=add_special))

    async def render(self, chat: Chat) -> str:
        """A conversation as the model's chat template writes it.

        Raises:
            UsageError: there is no template, or it refuses.
        """
        return await self._beside(lambda: self._prompts.render(chat))

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included.

        Raises:
            InvalidParameterError: an id that the vocabulary lacks.
        """
        return await self._beside(lambda: self._prompts.detokenize(ids))

    async def forget_prefixes(self) -> int:
        """Empties the prefix cache; how many pages that freed."""
        return await self._beside(self.engine.forget_prefixes)

    def limit_tenants(self, tenants: Mapping[str, TenantLimits]) -> None:
        """From now on these are the limits of single tenants; who has more under way keeps it."""
        self.limits = replace(self.limits, tenants=tenants)
        self._admission.limits = self.limits

    def seconds_since(self, when: float) -> float:
        """How long ago something was, such as Stream.opened."""
        return self._clock() - when

    def load(self) -> Load:
        """How busy it is."""
        total, (pages_used, pages_total) = self._admission.total, self.engine.pages
        return Load(
            waiting=total.queued,
            running=total.streams - total.queued,
            tokens_in_flight=total.tokens,
            pages_used=pages_used,
            pages_total=pages_total,
            streams=total.streams,
            max_batch=self.engine.max_batch,
        )

    def check_model(self, name: str) -> None:
        """Raises UnknownModelError for a name that is not served, where names were given."""
        if self.served_names and name and name not in self.served_names:
            names = ", ".join(self.served_names)
            raise UnknownModelError(f"model is {name[:100]!r}, expected one of those served: {names}")

    def streams(self) -> tuple[Stream, ...]:
        """The calls whose engine work has not ended."""
        return tuple(self._streams.values())

    # A call's way in

    async def _open(self, call: Call) -> Stream:
        arrival = self._clock()
        self._check_state()
        self.check_model(call.model)
        id = call.id or f"req-{secrets.token_hex(12)}"
        key = call.tenant, id  # what others call their requests is none of a tenant's business
        if self.has(id, tenant=call.tenant):
            raise DuplicateIdError(f"a request with the id {id!r} is running: choose another, or leave it out")
        if 0.0 in (call.timeout, call.queue_timeout):
            raise DeadlineError("the time given was over when the request arrived")
        place = self._admission.enter(call.tenant)
        stream = Stream(id, counters=self.counters, most=self.limits.max_buffered_events, clock=self._clock)
        self._streams[key] = stream
        self._empty.clear()
        stream.when_admitted(lambda stream: place.admitted())
        stream.when_ended(lambda stream: self._leave(key, stream, place))
        for watcher in self._watchers:
            stream.when_ended(partial(watcher, call))
        try:
            await self._submit(call, stream, place, arrival)
        except BaseException as error:
            stream.refuse(error)
            raise
        self.counters.opened += 1
        return stream

    async def _submit(self, call: Call, stream: Stream, place: Place, arrival: float) -> None:
        def left(limit: float | None) -> float | None:
            return None if limit is None else max(0.0, arrival + limit - self._clock())

        limits = [seconds for seconds in (left(call.queue_timeout), left(call.timeout)) if seconds is not None]
        try:
            work = self._beside(lambda: self._prompts.request(call, stream.id))
            request = await asyncio.wait_for(work, min(limits, default=None))
        except TimeoutError:
            raise DeadlineError("the time given was over before the prompt was tokenised") from None
        self._check_state()
        room = max(0, self.card.context - len(request.prompt))
        answers = request.params.n * request.params.num_tokens(room) if request.kind is Kind.GENERATE else 0
        place.take_tokens(len(request.prompt) + answers)
        if 0.0 in (left(call.queue_timeout), left(call.timeout)):
            stream.end(Reason.DEADLINE)
        if stream.cause is not None:
            raise stream.cause_error()
        assert self._relay is not None
        abort = self.engine.submit_to(Wire(self._relay, stream), request)
        stream.runs(request, abort)
        self._set_timers(stream, left(call.queue_timeout), left(call.timeout))

    def _set_timers(self, stream: Stream, queue: float | None, total: float | None) -> None:
        loop = asyncio.get_running_loop()
        if queue is not None:
            waiting = loop.call_later(queue, stream.end, Reason.DEADLINE)
            stream.when_admitted(lambda stream: waiting.cancel())
            stream.when_ended(lambda stream: waiting.cancel())
        if total is not None:
            running = loop.call_later(total, stream.end, Reason.DEADLINE)
            stream.when_ended(lambda stream: running.cancel())

    def _leave(self, key: tuple[str, str], stream: Stream, place: Place) -> None:
        place.leave()
        del self._streams[key]
        if not self._streams:
            self._empty.set()
        if stream.submitted:
            self.counters.ended[str(stream.outcome)] += 1

    def _check_state(self) -> None:
        if self.state is State.READY:
            return
        if self.state is State.FAILED:
            raise DeviceError(f"the engine has failed: {self.failure}")
        if self.state is State.STARTING:
            raise NotReadyError("the server is starting: try again", self.limits.retry_after)
        raise DrainingError("the server is going down: try another one, or again later", self.limits.retry_after)

    async def _beside[T](self, work: Callable[[], T]) -> T:
        if self.state is State.CLOSED:
            raise EngineClosedError("the front is closed")
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)

    async def _end_streams(self, seconds: float | None) -> None:
        for stream in tuple(self._streams.values()):
            stream.end(Reason.DRAINED)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), seconds)

    # Looking after it

    async def _keep(self) -> None:
        """Ends streams that nobody reads, and notices that the engine has failed."""
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            now = self._clock()
            for stream in tuple(self._streams.values()):
                if stream.cause is None and stream.idle_seconds(now) > self.limits.stall_seconds:
                    self.counters.stalled += 1
                    stream.end(Reason.SLOW_READER)
            if self.engine.dead is not None and self.state not in (State.FAILED, State.CLOSED):
                self._fail(self.engine.dead)

    def _warmed(self, warming: "asyncio.Future[Any]") -> None:
        error = None if warming.cancelled() else warming.exception()
        if error is not None and self.state is not State.CLOSED:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        self._enter(State.FAILED)

    def _enter(self, state: State) -> None:
        self.state = state
        for call in self._observers:
            call(state)
