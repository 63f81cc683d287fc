"""Several replicas that step together: one program over all their devices, one queue in front of them.

Each replica has an engine of its own, with slots, pages and a prefix tree; page numbers are a replica's. A round asks
every engine for its plan, runs the plans as one step of the smallest bucket that holds each of them, with empty rows
for replicas that have nothing to do, and lets every engine read its part of the tokens of the step before.

A request stays in the queue until a replica has room for it, and goes where most of its prompt is cached, unless that
replica has more to do: a request more counts as a page of cached tokens.
"""

import threading
from bisect import insort
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from ..backends.errors import DistaffError
from .engine import Engine
from .errors import DeviceError, EngineClosedError
from .generation import Generation, Outbox, Outlet
from .live_request import LiveRequest
from .plan import Bucket, BucketKind, Plan, smallest
from .replica_device import ReplicaDevice, SharedDevice, Whole, emptied, widened
from .replicas import BEGINNING, Replicas
from .rounds import Begun, Rounds
from .runner import Device
from .types import Request


class OneProgram(Replicas):
    """Used as an Engine is.

    Args:
        device: what computes for all replicas.
        make: an engine on the device of one; all count in the same metrics.
    """

    def __init__(self, device: SharedDevice, make: Callable[[Device], Engine]) -> None:
        self._device = device
        self._parts = [ReplicaDevice(device) for _ in range(device.replicas)]
        super().__init__([make(part) for part in self._parts])
        self._inbox: deque[LiveRequest] = deque()
        self._aborts: deque[LiveRequest] = deque()
        self._queue: list[LiveRequest] = []
        self._lock = threading.Lock()
        self._dead: DistaffError | None = None
        self._rounds = Rounds(
            "distaff-replicas",
            step=self.step,
            wait_seconds=self._wait_seconds,
            flush=self.flush,
            ended=lambda: self._dead is not None,
        )

    def submit(self, request: Request) -> Generation:
        """As Engine.submit."""
        outbox = Outbox()
        return Generation(outbox, self._rounds.for_reader, self.submit_to(outbox, request))

    def submit_to(self, outbox: Outlet, request: Request) -> Callable[[], None]:
        """As Engine.submit_to."""
        if self._dead is not None:
            raise self._dead
        live = self.engines[0].admissible(request, outbox)
        self._inbox.append(live)
        self._rounds.wake()
        if self._dead is not None:  # closed in between: nobody would look into the inbox
            self._fail_waiting(self._dead)
        return lambda: self._abort(live)

    def after_round(self, call: Callable[[], None]) -> None:
        """As Engine.after_round, for the rounds that all do together, and what an engine says besides."""
        self._rounds.listeners.append(call)
        super().after_round(call)

    def flush(self) -> None:
        """Says that the input ends here."""
        super().flush()
        self._rounds.wake()

    def step(self) -> bool:
        """One round of all replicas; whether there was anything to do."""
        with self._lock:
            try:
                return self._round()
            finally:
                self._rounds.tell()

    def _round(self) -> bool:
        self._take_requests()
        try:
            begun = self._begin()
            self._dispatch(begun)
            self._note_levels()
        except Exception as error:  # whatever a device throws
            for engine in self.engines:
                engine.recover(error)
            self._start_anew()
            return True
        worked = [engine.finish(half) for engine, half in begun.items()]
        lost = [part.lost for part in self._parts]
        if any(lost):
            error = RuntimeError("another replica of the same program has lost its cache")
            for engine, gone in zip(self.engines, lost, strict=True):
                if not gone:
                    engine.recover(error)
            self._start_anew()
        return any(worked)

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._inbox) + len(self._queue) + super().num_requests

    @property
    def dead(self) -> DistaffError | None:
        """Why it does nothing any more, if so."""
        return self._dead

    def warm_up(self, *, background: bool = False) -> None:
        """As Engine.warm_up: the programs are everybody's."""
        self.engines[0].warm_up(background=background)

    def check_integrity(self) -> None:
        """
        Raises:
            IntegrityError: the books of a replica do not agree.
        """
        with self._lock:
            super().check_integrity()

    def start(self) -> None:
        """Lets a thread do the rounds, until `close`."""
        self._started = True
        self._rounds.start()

    def close(self) -> None:
        """Ends every request, the thread and the engines. Closing again does nothing."""
        if self._dead is None:
            self._dead = EngineClosedError("the engine is closed: make a new one")
        self._rounds.join()
        with self._lock:
            super().close()
            self._fail_waiting(self._dead)
            self._device.close()

    def __enter__(self) -> "OneProgram":
        return self

    def _wait_seconds(self) -> float | None:
        waits = [engine.scheduler.wait_seconds() for engine in self.engines]
        return min((wait for wait in waits if wait is not None), default=None)

    # Requests

    def _take_requests(self) -> None:
        while self._inbox:
            insort(self._queue, self._inbox.popleft(), key=self._rank)
        while self._aborts:
            self._give_up(self._aborts.popleft())
        while self._queue:
            engine = self._engine_with_room(self._queue[0])
            if engine is None:
                break
            engine.adopt(self._queue.pop(0))
            engine.take_requests()
        for engine in self.engines:
            engine.take_requests()

    def _rank(self, live: LiveRequest) -> tuple[float, int]:
        """As the schedulers order their sequences."""
        first = live.sequences[0]
        return live.request.priority + first.arrival / self.config.aging, first.order

    def _engine_with_room(self, live: LiveRequest) -> Engine | None:
        """Where a request goes; None while every replica has a batch and another one waiting."""
        schedulers = {engine: engine.scheduler for engine in self.engines}
        loads = {engine: len(each.waiting) + each.num_running for engine, each in schedulers.items()}
        least = min(loads.values())
        limit = min(2 * self.config.max_batch, least + self.config.max_batch + 1)
        room = [engine for engine, load in loads.items() if load < limit]
        if not room:
            return None
        first, page = live.sequences[0], self._device.page_size
        key = (live.request.cache_salt, *live.request.prompt[:BEGINNING])
        last = self._homes.get(key)

        def value(engine: Engine) -> tuple[int, int]:
            known = schedulers[engine].num_known(first)
            if engine is last and self.config.prefix_cache:  # may be computing it
                known = max(known, len(key) - 1)
            return known - page * (loads[engine] - least), -loads[engine]

        best = max(room, key=value)
        self._remember(key, best)
        return best

    def _abort(self, live: LiveRequest) -> None:
        self._aborts.append(live)
        self._rounds.wake()
        if not self._rounds.in_thread and self._lock.acquire(blocking=False):
            try:
                self._take_requests()
            finally:
                self._lock.release()
                self._rounds.tell()

    def _give_up(self, live: LiveRequest) -> None:
        if live.outbox.ended:
            return
        if live in self._queue:
            self._queue.remove(live)
            live.abort()
        else:
            any(engine.drop(live) for engine in self.engines)

    def _fail_waiting(self, error: DistaffError) -> None:
        for live in (*self._inbox, *self._queue):
            if not live.outbox.ended:
                live.fail(error)
        self._inbox.clear()
        self._queue.clear()
        self._rounds.tell()

    # Parts of a round

    def _begin(self) -> dict[Engine, Begun]:
        """Every engine's plan, such that one bucket holds them all.

        Prompt logits want a bucket of few tokens: where one replica is asked for them, all plan for that. Decode steps
        are several in a call only if no replica computes prompts.
        """
        ready = self._device.buckets
        scoring = tuple(bucket for bucket in ready if bucket.kind == "prompt")
        others = tuple(bucket for bucket in ready if bucket.kind != "prompt")
        buckets = scoring if scoring and any(engine.scheduler.has_scoring for engine in self.engines) else others
        prompts = [engine for engine in self.engines if engine.scheduler.has_prompts]
        begun = {engine: engine.begin(buckets, 1 if len(prompts) > 1 else None) for engine in prompts}
        plans = [half.dispatched.plan for half in begun.values() if half.dispatched is not None]
        mixed = any(plan.bucket.kind != "decode" for plan in plans)
        for engine in self.engines:
            if engine not in begun:
                begun[engine] = engine.begin(buckets, 1 if mixed else None)
        return begun

    def _dispatch(self, begun: dict[Engine, Begun]) -> None:
        """Runs what the engines have asked for as one step."""
        parts, device = self._parts, self._device
        tickets = [half.dispatched for half in begun.values() if half.dispatched is not None]
        if not tickets:
            return
        bucket = _bucket_of([ticket.plan for ticket in tickets], device.buckets)
        if any(any(part.copies) for part in parts):
            device.copy_all([part.copies for part in parts])
        if any(part.admitted[0] for part in parts):
            device.admit_all([part.admitted for part in parts])
        batches = [part.work and widened(part.work[0], bucket.num_rows, device.num_slots) for part in parts]
        empty = emptied(next(batch for batch in batches if batch is not None), device.num_slots)
        whole = Whole(device.step_all(bucket, [batch or empty for batch in batches]))
        for number, part in enumerate(parts):
            if part.work is not None:
                part.work[1].fill(whole, number, len(parts))
            part.forget()
        for ticket in tickets:
            ticket.plan = replace(ticket.plan, bucket=bucket)

    def _note_levels(self) -> None:
        for engine in self.engines:
            engine.note_levels()
        self.metrics.levels(waiting=len(self._queue), running=0, pages_used=0, part=id(self))

    def _start_anew(self) -> None:
        """Everybody has an empty cache, or nobody goes on."""
        dead = next((engine.dead for engine in self.engines if engine.dead is not None), None)
        try:
            self._device.reset()
        except Exception as error:
            dead = DeviceError(f"the replicas have lost their devices ({error}): make a new engine")
            dead.__cause__ = error
        for part in self._parts:
            part.lost = False
            part.forget()
        if dead is not None:
            self._dead = dead
            for engine in self.engines:
                engine.close()
            self._fail_waiting(dead)


def _bucket_of(plans: list[Plan], buckets: tuple[Bucket, ...]) -> Bucket:
    """The smallest bucket that holds each of the plans."""
    kinds = {plan.bucket.kind for plan in plans}
    kind: BucketKind = next(kind for kind in ("prompt", "mixed", "decode") if kind in kinds)
    num_tokens = max(sum(row.num_tokens for row in plan.rows) for plan in plans)
    bucket = smallest(buckets, num_tokens, max(len(plan.rows) for plan in plans), (kind,))
    assert bucket is not None  # each kind holds all rows, and a plan had that many tokens
    return bucket
