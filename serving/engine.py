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

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from typing import NamedTuple

from ..backends.errors import DistaffError
from ..models.tokenizer import Tokenizer
from .engine_config import EngineConfig
from .errors import CacheTooSmallError, ContextLengthError, DeviceError, EngineClosedError
from .generation import Generation, Outbox, Outlet, Result
from .live_request import LiveRequest, with_seed
from .metrics import Metrics
from .output import Output
from .pace import Pace
from .plan import Bucket
from .results import Timings
from .rounds import Rounds
from .rows import Row, check_row, sampling_row
from .runner import Device, Runner, Ticket
from .scheduler import Scheduler, SchedulerConfig
from .sequence import Sequence, Status
from .types import Kind, Request

_MAX_FAILURES = 3
"""Steps in a row that may fail before the device is given up."""


class Begun(NamedTuple):
    """Half a round: when it began, what it dispatched, and the step before that, whose tokens are not read yet."""

    started: float
    dispatched: Ticket | None
    previous: Ticket | None


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
        metrics: what is counted.
        clock: seconds.

    Attributes:
        scheduler: which sequences run.
    """

    def __init__(
        self,
        device: Device,
        config: EngineConfig,
        *,
        vocab_size: int,
        eos_ids: frozenset[int] = frozenset(),
        tokenizer: Tokenizer | None = None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.metrics = metrics or Metrics(
            max_batch=device.num_slots, num_pages=sum(device.num_pages), page_size=device.page_size
        )
        self._device = device
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids
        self._tokenizer = tokenizer
        self._clock = clock
        self.scheduler = Scheduler(
            SchedulerConfig(
                policy=config.policy,
                max_batch=device.num_slots,
                batch_timeout=config.batch_timeout,
                max_step_tokens=config.max_step_tokens,
                max_decode_steps=config.max_decode_steps,
                fixed_chunk=config.fixed_chunk,
                aging_seconds=config.aging,
                prefix_cache=config.prefix_cache,
            ),
            device.page_size,
            device.num_pages,
            device.groups,
            clock,
        )
        self._runner = Runner(device, self._row)
        self._in_flight: Ticket | None = None
        self._live: dict[Sequence, LiveRequest] = {}
        self._inbox: deque[LiveRequest] = deque()
        self._aborts: deque[LiveRequest] = deque()
        self._count = 0
        self._failures = 0
        self._pace = Pace(self.metrics, config.max_decode_steps, config.target_burst)
        self._dead: DistaffError | None = None
        self._flush = False
        self._step_lock = threading.Lock()
        self._rounds = Rounds(
            "distaff-engine",
            step=self.step,
            wait_seconds=self.scheduler.wait_seconds,
            flush=self.flush,
            ended=lambda: self._dead is not None,
        )
        self.load_seconds = 0.0

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
        if self._dead is not None:  # closed in between: nobody would look into the inbox
            self._fail_all(self._dead)
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

    def abort(self, generation: Generation) -> None:
        """Ends a request, wherever it is; slot and pages are free within one step."""
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
        return len(set(self._live.copy().values())) + len(self._inbox)  # a thread may change it meanwhile

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
        if self._dead is None:
            self._dead = EngineClosedError("the engine is closed: make a new one")
        self._rounds.join()
        with self._step_lock:
            self._in_flight = None
            self._fail_all(self._dead)
            self.note_levels()
            self._device.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # Parts of a round, for those who take several engines through one

    def admissible(self, request: Request, outbox: Outlet) -> LiveRequest:
        """The request with its sequences, if it can ever run; raises what `submit` does."""
        if self._dead is not None:
            raise self._dead
        request = with_seed(request, secrets.randbits(64))
        check_row(request, vocab_size=self._vocab_size, eos_ids=self._eos_ids)
        prompt_len, context = len(request.prompt), self._device.max_len
        generates = request.kind is Kind.GENERATE
        if prompt_len + generates > context:
            raise ContextLengthError(
                f"the prompt has {prompt_len} tokens, the context holds {context} with the answer; "
                f"shorten the prompt to at most {context - generates} tokens"
            )
        max_tokens = request.params.num_tokens(context - prompt_len) if generates else 0
        max_len = prompt_len + max_tokens
        if not self.scheduler.fits(prompt_len, max_len):
            raise CacheTooSmallError(
                f"prompt and answer take {max_len} tokens, that is {self.scheduler.pages_needed(max_len)} pages of "
                f"the KV cache, which has {self._device.num_pages}; ask for fewer tokens or raise kv_memory"
            )
        arrival = self._clock()
        sequences: list[Sequence] = []
        for choice in range(request.params.n if generates else 1):
            self._count += 1
            sequences.append(Sequence.of(request, choice, max_len=max_len, order=self._count, arrival=arrival))
        output = Output(request, max_tokens=max_tokens, eos_ids=self._eos_ids, tokenizer=self._tokenizer)
        timings, self.load_seconds = Timings(load=self.load_seconds), 0.0
        return LiveRequest(
            request,
            output,
            tuple(sequences),
            self.metrics,
            timings,
            lambda: self._device.compile_seconds,
            outbox,
            self._clock,
        )

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
            self._started(ticket)
        return Begun(started, ticket, previous)

    def finish(self, begun: Begun) -> bool:
        """Reads the tokens of the step before; whether there was anything to do."""
        if begun.previous is not None:
            self._update(begun.previous, host=self._clock() - begun.started)
        return begun.dispatched is not None or begun.previous is not None

    def take_requests(self) -> None:
        """Gives the scheduler what has come in, and takes out of it what was given up."""
        while self._inbox:
            live = self._inbox.popleft()
            for sequence in live.sequences:
                self._live[sequence] = live
                self.scheduler.add(sequence)
        while self._aborts:
            live = self._aborts.popleft()
            if not live.outbox.ended:
                self._let_go(live)
                live.abort()
        if self._flush:
            self._flush = False
            self.scheduler.flush()

    def _started(self, ticket: Ticket) -> None:
        for sequence in ticket.plan.admitted:
            self._live[sequence].started(sequence)
        self.metrics.preempted(len(ticket.plan.preempted))
        self.note_levels()

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
        first = 0
        for index, row in enumerate(ticket.plan.rows):
            live = self._live.get(row.sequence)
            if live is not None:
                try:
                    self._hand_on(live, ticket, index, tokens[index], slice(first, first + row.num_tokens), now)
                except Exception as error:  # this request's own trouble, nobody else's
                    self._let_go(live)
                    live.fail(error)
            first += row.num_tokens
        self._pace.read(ticket, host=host + self._clock() - now, wait=now - before, now=now)
        if ticket.plan.bucket.kind == "decode":
            self.scheduler.max_decode_steps = self._pace.decode_steps

    def _hand_on(
        self, live: LiveRequest, ticket: Ticket, index: int, tokens: Items[int], at: slice, now: float
    ) -> None:
        row = ticket.plan.rows[index]
        sequence = row.sequence
        if ticket.plan.bucket.kind == "prompt" and sequence.needs_prompt_logits:
            live.take_prompt(row, at, index, ticket.prompt())
        ended = False
        if row.draws:
            taken = 0
            while taken < len(tokens) and not ended:
                token = tokens[taken]
                ended = live.take(sequence.choice, token, ticket.logprob(index, taken, token), now)
                taken += 1
            self.scheduler.note_tokens(sequence, tokens[:taken])
        elif live.request.kind is not Kind.GENERATE:
            ended = row.start + row.num_tokens == sequence.prompt_len
        if ended:
            self.scheduler.finish(sequence)
            del self._live[sequence]
            live.finish()

    def _row(self, sequence: Sequence) -> Row:
        request = sequence.request
        return sampling_row(
            request.params,
            request=request,
            choice=sequence.choice,
            prompt_len=sequence.prompt_len,
            vocab_size=self._vocab_size,
            eos_ids=self._eos_ids,
            max_len=self._device.max_len,
        )

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

    def _let_go(self, live: LiveRequest) -> None:
        """Takes every sequence of a request out of the scheduler."""
        for sequence in live.sequences:
            if self._live.pop(sequence, None) is not None:
                self.scheduler.finish(sequence)

    @property
    def dead(self) -> DistaffError | None:
        """Why it does nothing any more, if so."""
        return self._dead

    def drop(self, live: LiveRequest) -> bool:
        """Ends a request that was given up; False where it does not run here."""
        if not any(sequence in self._live for sequence in live.sequences):
            return False
        self._let_go(live)
        live.abort()
        return True

    def recover(self, error: Exception, *tickets: Ticket) -> None:
        """After a step failed: its requests fail; the others are computed anew in a new cache."""
        self._failures += 1
        in_flight, self._in_flight = self._in_flight, None
        failed = DeviceError(f"the device failed in a step with this request: {error}")
        failed.__cause__ = error
        batch = {row.sequence for ticket in (*tickets, in_flight) if ticket is not None for row in ticket.plan.rows}
        batch.update(s for s in self._live if s.status is not Status.WAITING and not tickets)
        for live in {self._live[sequence] for sequence in batch if sequence in self._live}:
            self._let_go(live)
            live.fail(failed)
        try:
            if self._failures >= _MAX_FAILURES:
                raise error
            self.scheduler.reset()
            self._runner.reset()
        except Exception as fatal:
            self._dead = DeviceError(f"the engine has lost its device ({fatal}): make a new one")
            self._dead.__cause__ = fatal
            self._fail_all(self._dead)

    def _fail_all(self, error: DistaffError) -> None:
        for live in {*self._live.values(), *self._inbox}:
            self._let_go(live)
            if not live.outbox.ended:
                live.fail(error)
        self._inbox.clear()
        self._rounds.tell()
