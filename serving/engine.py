"""Many requests at once on one model.

The life of a request:

1. `submit` checks it and leaves it in the inbox; the caller holds a Generation.
2. `step` takes it from there: each choice becomes a waiting sequence of the scheduler.
3. The scheduler gives it a slot and pages, less what the prefix cache holds, and plans its prompt in chunks.
4. The runner makes arrays of the plan and dispatches one compiled program. Nobody waits for it.
5. While it runs, the tokens of the step before are read: each goes through the request's output (text, stop texts,
   log-probabilities) into the Generation.
6. A sequence that ended gives slot and pages back; the last one ends the Generation.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items

from ..backends.errors import DistaffError
from ..models.tokenizer import Tokenizer
from .engine_config import EngineConfig
from .errors import DeviceError, EngineClosedError
from .generation import Generation, Outbox, Outlet, Result
from .intake import Intake
from .live_request import LiveRequest
from .live_requests import LiveRequests
from .metrics import Metrics
from .output import Hidden
from .pace import Pace
from .plan import Bucket
from .rounds import Begun, Rounds
from .runner import Device, Runner, Ticket
from .scheduler import Scheduler
from .types import Request

_MAX_FAILURES = 3
"""Steps in a row that may fail before the device is given up."""


class Engine:
    """Continuous batching over a device.

    `step` does one round, `run` does them until nothing is left, `start` does them in a thread; a Generation that is
    read where no thread runs does them itself.

    Args:
        device: what computes.
        config: how to batch.
        vocab_size: tokens that requests may name.
        eos_ids: the model's end tokens.
        tokenizer: None for token ids alone.
        hidden: what hidden states behind the last norm become before they are told.
        metrics: what is counted.
        clock: seconds.

    Attributes:
        scheduler: which sequences run.
        dead: why it does nothing any more, if so.
    """

    def __init__(
        self,
        device: Device,
        config: EngineConfig,
        *,
        vocab_size: int,
        eos_ids: frozenset[int] = frozenset(),
        tokenizer: Tokenizer | None = None,
        hidden: Hidden | None = None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.metrics = metrics or Metrics(
            max_batch=device.num_slots, num_pages=sum(device.num_pages), page_size=device.page_size
        )
        self._device = device
        self._clock = clock
        self.scheduler = Scheduler(
            config.scheduler(device.num_slots), device.page_size, device.num_pages, device.groups, clock
        )
        self._intake = Intake(
            device,
            self.scheduler,
            self.metrics,
            vocab_size=vocab_size,
            eos_ids=eos_ids,
            tokenizer=tokenizer,
            hidden=hidden,
            clock=clock,
        )
        self._runner = Runner(device, self._intake.row)
        self._in_flight: Ticket | None = None
        self._live = LiveRequests(self.scheduler)
        self._inbox: deque[LiveRequest] = deque()
        self._aborts: deque[LiveRequest] = deque()
        self._failures = 0
        self._pace = Pace(self.metrics, config.max_decode_steps, config.target_burst)
        self.dead: DistaffError | None = None
        self._flush = False
        self._step_lock = threading.Lock()
        self._rounds = Rounds(
            "distaff-engine",
            step=self.step,
            wait_seconds=self.scheduler.wait_seconds,
            flush=self.flush,
            ended=lambda: self.dead is not None,
        )

    # Requests

    def submit(self, request: Request) -> Generation:
        """Takes a request in; its events come out of the Generation. Any thread may call.

        Raises:
            ContextLengthError, CacheTooSmallError: it can never fit; the message has the numbers.
            InvalidParameterError: a parameter that this model or its vocabulary cannot honour.
            EngineClosedError, DeviceError: the engine is closed, or has lost its device.
        """
        outbox = Outbox()
        return Generation(outbox, self._rounds.for_reader, self.submit_to(outbox, request))

    def submit_to(self, outbox: Outlet, request: Request) -> Callable[[], None]:
        """Takes a request in, whose events go to `outbox` as they come; raises as `submit` does.

        Returns:
            What ends the request, wherever it is; slot and pages are free within one step.
        """
        live = self.admissible(request, outbox)
        self.adopt(live)
        self._rounds.wake()
        if self.dead is not None:  # closed in between: nobody would look into the inbox
            self._fail_all(self.dead)
        return lambda: self._abort(live)

    def generate(self, requests: Iterable[Request]) -> list[Result]:
        """Runs requests together; results come in their order.

        Raises:
            DistaffError: a request was refused or failed; the others are ended.
        """
        generations: list[Generation] = []
        try:
            generations += (self.submit(request) for request in requests)
            self.flush()
            return [generation.result() for generation in generations]
        finally:
            for generation in generations:
                generation.close()

    def flush(self) -> None:
        """Says that the input ends here: batches need not be full."""
        self._flush = True
        self._rounds.wake()

    # Rounds

    def step(self) -> bool:
        """One round: schedules, runs, and updates with the tokens of the round before, while the device works.

        Returns:
            Whether there was anything to do.
        """
        with self._step_lock:
            try:
                return self._round()
            finally:
                self._rounds.tell()

    def _round(self) -> bool:
        self.take_requests()
        try:
            begun = self.begin(self._device.buckets)
        except Exception as error:  # whatever a device throws
            self.recover(error)
            return True
        if begun.dispatched is None:
            self.note_levels()
        return self.finish(begun)

    def after_round(self, call: Callable[[], None]) -> None:
        """Calls this after each round, and after whatever else may have put something into outboxes."""
        self._rounds.listeners.append(call)

    def run(self) -> None:
        """Rounds until no request is left."""
        while self._live or self._inbox:
            self._rounds.pump()

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._live) + len(self._inbox)

    def warm_up(self, *, background: bool = False) -> None:
        """Compiles every program; from then on a compilation is counted as unexpected.

        Args:
            background: returns at once; requests are served with the programs that are ready.
        """
        if background:
            threading.Thread(target=self.warm_up, name="distaff-warm-up", daemon=True).start()
            return
        self._device.warm_up()

    @property
    def load_seconds(self) -> float:
        """What loading the model took, until a request was told."""
        return self._intake.load_seconds

    @load_seconds.setter
    def load_seconds(self, seconds: float) -> None:
        self._intake.load_seconds = seconds

    @property
    def is_warm(self) -> bool:
        """Whether everything is compiled."""
        return self._device.is_warm

    @property
    def is_ready(self) -> bool:
        """Whether a warm-up that has begun has come so far that requests can be served."""
        began = self._device.is_warm or self._device.compile_seconds > 0
        return began and any(bucket.kind == "mixed" for bucket in self._device.buckets)

    @property
    def max_batch(self) -> int:
        """Sequences that run at once."""
        return self._device.num_slots

    @property
    def pages(self) -> tuple[int, int]:
        """Pages that sequences hold, and all there are, of all groups together."""
        return self.scheduler.tables.cache.levels[0], sum(self._device.num_pages)

    def forget_prefixes(self) -> int:
        """Empties the prefix cache; how many pages that freed. Texts that run keep theirs."""
        with self._step_lock:
            pools = self.scheduler.tables.cache.pools
            before = sum(pool.num_free for pool in pools)
            self.scheduler.tables.cache.clear()
            self.note_levels()
            return sum(pool.num_free for pool in pools) - before

    def check_integrity(self) -> None:
        """
        Raises:
            IntegrityError: the books on pages, slots and sequences do not agree.
        """
        with self._step_lock:
            self.scheduler.check_integrity()

    # Lifetime

    def start(self) -> None:
        """Lets a thread do the rounds, until `close`."""
        self._rounds.start()

    def close(self) -> None:
        """Ends every request, the thread, and the cache. Closing again does nothing."""
        if self.dead is None:
            self.dead = EngineClosedError("the engine is closed: make a new one")
        self._rounds.join()
        with self._step_lock:
            self._in_flight = None
            self._fail_all(self.dead)
            self.note_levels()
            self._device.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # Parts of a round, for those who take several engines through one

    def admissible(self, request: Request, outbox: Outlet) -> LiveRequest:
        """The request with its sequences, if it can ever run; raises what `submit` does."""
        if self.dead is not None:
            raise self.dead
        return self._intake.take(request, outbox)

    def adopt(self, live: LiveRequest) -> None:
        """The next round takes this request."""
        self._inbox.append(live)

    def begin(self, buckets: Items[Bucket], max_steps: int | None = None) -> Begun:
        """Plans and dispatches a step.

        Args:
            buckets: those that it may use.
            max_steps: most decode steps in it; None as the pace says.
        """
        started = self._clock()
        plan = self.scheduler.schedule(buckets, max_steps)
        ticket = None if plan is None else self._runner.run(plan, self._clock)
        previous, self._in_flight = self._in_flight, ticket
        if ticket is not None:
            self._live.started(ticket, started)
            self.metrics.preempted(len(ticket.plan.preempted))
            self.note_levels()
        return Begun(started, ticket, previous)

    def finish(self, begun: Begun) -> bool:
        """Reads the tokens of the step before; whether there was anything to do."""
        if begun.previous is not None:
            self._update(begun.previous, host=self._clock() - begun.started)
        return begun.dispatched is not None or begun.previous is not None

    def take_requests(self) -> None:
        """Gives the scheduler what has come in, and takes out of it what was given up."""
        while self._inbox:
            self._live.add(self._inbox.popleft())
        while self._aborts:
            live = self._aborts.popleft()
            if not live.outbox.ended:
                self._live.let_go(live)
                live.abort()
        if self._flush:
            self._flush = False
            self.scheduler.flush()

    def note_levels(self) -> None:
        """Tells the metrics where things stand."""
        used, cached = self.scheduler.tables.cache.levels
        waiting, running = len(self.scheduler.waiting), self.scheduler.num_running
        self.metrics.levels(waiting=waiting, running=running, pages_used=used, pages_cached=cached, part=id(self))

    def _update(self, ticket: Ticket, host: float) -> None:
        """Reads a step's tokens and hands them on."""
        before = self._clock()
        try:
            tokens = ticket.tokens()
        except Exception as error:
            self._in_flight, lost = None, self._in_flight
            self.recover(error, *(other for other in (ticket, lost) if other is not None))
            return
        now = self._clock()
        self._failures = 0
        load = ticket.expert_load()
        if load is not None:
            self.metrics.chose_experts(load)
        self._live.read(ticket, tokens, now)
        self._pace.read(ticket, host=host + self._clock() - now, wait=now - before, now=now)
        if ticket.plan.bucket.kind == "decode":
            self.scheduler.max_decode_steps = self._pace.decode_steps

    # Ends

    def _abort(self, live: LiveRequest) -> None:
        self._aborts.append(live)
        self._rounds.wake()
        if not self._rounds.in_thread and self._step_lock.acquire(blocking=False):
            try:
                self.take_requests()
            finally:
                self._step_lock.release()
                self._rounds.tell()

    def drop(self, live: LiveRequest) -> bool:
        """Ends a request that was given up; False where it does not run here."""
        if live not in self._live:
            return False
        self._live.let_go(live)
        live.abort()
        return True

    def recover(self, error: Exception, *tickets: Ticket) -> None:
        """After a step failed: its requests fail; the others are computed anew in a new cache."""
        self._failures += 1
        in_flight, self._in_flight = self._in_flight, None
        failed = DeviceError(f"the device failed in a step with this request: {error}")
        failed.__cause__ = error
        steps = [ticket for ticket in (*tickets, in_flight) if ticket is not None]
        hit = self._live.of(steps)
        if not tickets:  # it failed before there was a ticket: any that has begun may have been in it
            hit |= self._live.begun
        for live in hit:
            self._live.let_go(live)
            live.fail(failed)
        try:
            if self._failures >= _MAX_FAILURES:
                raise error
            self.scheduler.reset()
            self._runner.reset()
        except Exception as fatal:
            self.dead = DeviceError(f"the engine has lost its device ({fatal}): make a new one")
            self.dead.__cause__ = fatal
            self._fail_all(self.dead)

    def _fail_all(self, error: DistaffError) -> None:
        for live in self._live.requests | {*self._inbox}:
            self._live.let_go(live)
            if not live.outbox.ended:
                live.fail(error)
        self._inbox.clear()
        self._rounds.tell()
