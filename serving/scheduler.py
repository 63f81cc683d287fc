"""Which rows the next step computes.

The device runs steps in the order of their plans, so a plan counts as done once it is made: a page that it frees may be
written by the next one. What the device draws, the host learns later (`note_tokens`); planning never waits for it.
"""

import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Row

from ..backends.base import CacheGroup
from .integrity import check_scheduler
from .memory import Memory
from .page_pool import IntegrityError, check
from .page_tables import PageTables
from .plan import Bucket, Plan, PlannedRow
from .policies import Gate
from .prefix_cache import Match, PrefixStats
from .room import Room
from .roster import Roster, rank
from .scheduler_config import SchedulerConfig
from .sequence import Private, Sequence, Status

_WARM_UP_POLL = 0.01
"""Seconds between looks for a bucket that the waiting work needs and that is still being compiled."""

Copies = tuple[list[tuple[int, int]], ...]


class Scheduler:
    """The sequences of an engine, their slots and their pages.

    Args:
        config: see there.
        page_size: positions of a page.
        num_pages: pages of each cache group.
        groups: the cache groups.
        clock: seconds, as in Sequence.arrival.

    Attributes:
        max_decode_steps: most decode steps in one call; the engine adapts it.
        roster: where the sequences stand.
        tables: their pages, and the prefix tree.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        page_size: int,
        num_pages: Row[int],
        groups: Row[CacheGroup],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.max_decode_steps = config.max_decode_steps
        self.roster = Roster(config.max_batch)
        self.tables = PageTables(
            num_pages,
            [group.window for group in groups],
            page_size,
            max_chunk=config.max_step_tokens,
            min_chunk=config.fixed_chunk or 1,
        )
        self.num_plans = 0
        self._memory = Memory(self.tables, self.roster)
        self._gate = Gate(config.policy, config.max_batch, config.batch_timeout, clock)
        self._siblings: dict[Private, int] = {}  # unfinished choices of requests that opted out of sharing
        self._ending: list[Sequence] = []  # drawn to the end by the last plan
        self._starved = False  # the last plan had no room for a prompt
        self._stuck = False  # nothing was planned, though sequences may run

    # What the engine tells

    def add(self, sequence: Sequence) -> None:
        """Takes a sequence in. The engine has made sure that it `fits`."""
        # Everybody ages alike, so the order of two sequences never changes.
        aged = sequence.request.priority + sequence.arrival / self.config.aging_seconds
        sequence.rank = (aged, sequence.order)
        if isinstance(sequence.namespace, Private):
            self._siblings[sequence.namespace] = self._siblings.get(sequence.namespace, 0) + 1
        self.roster.wait(sequence)
        self._stuck = False

    def note_tokens(self, sequence: Sequence, tokens: Iterable[int]) -> None:
        """The host has read the next tokens of a sequence. Those of a finished one are nobody's.

        Raises:
            IntegrityError: more than were drawn.
        """
        if sequence.status is Status.FINISHED:
            return
        self._stuck = False
        sequence.tokens.extend(tokens)
        if sequence.num_unread < 0:
            raise IntegrityError(f"sequence {sequence.order} has more tokens than were drawn")
        if sequence.caching:
            self.tables.share(sequence, self.num_plans + 1)

    def finish(self, sequence: Sequence) -> None:
        """Lets go of a sequence, done or given up, whatever it is doing; again does nothing."""
        if sequence.status is Status.FINISHED:
            return
        self.roster.remove(sequence)
        self.tables.release(sequence)
        sequence.status = Status.FINISHED
        self._gate.leave(sequence)
        self._memory.forget_blocked()
        self._stuck = False
        private = sequence.namespace
        if isinstance(private, Private):
            self._siblings[private] -= 1
            if not self._siblings[private]:
                del self._siblings[private]
                self.tables.cache.drop(private)

    def flush(self) -> None:
        """No more sequences are coming: batches need not be full."""
        self._gate.flush(self.roster.waiting)

    def reset(self) -> None:
        """The device has lost everything: all sequences wait again, to be computed anew from what the host has read.

        Steps in flight are void: their tokens must not be noted.
        """
        self.tables.clear()
        self._gate.rejoin(self.roster.requeue_all())
        self._memory.forget_blocked()
        self._ending, self._stuck = [], False
        for sequence in self.roster.waiting:
            self.tables.forget(sequence)
            sequence.num_drawn = len(sequence.tokens)
            sequence.prompt_scored = sequence.prompt_scored and len(sequence.tokens) > sequence.prompt_len

    # What the engine asks

    @property
    def waiting(self) -> Row[Sequence]:
        """By rank."""
        return self.roster.waiting

    @property
    def num_running(self) -> int:
        return self.roster.num_running

    @property
    def num_preemptions(self) -> int:
        return self._memory.num_preemptions

    @property
    def has_prompts(self) -> bool:
        """Whether there is known text to compute."""
        return bool(self.roster.waiting or self.roster.prefilling)

    @property
    def has_scoring(self) -> bool:
        """Whether prompt logits are wanted."""
        return any(sequence.scoring for sequence in (*self.roster.waiting, *self.roster.prefilling))

    def num_known(self, sequence: Sequence) -> int:
        """Tokens of a sequence that the prefix cache has."""
        return self.tables.length(self._match(sequence))

    @property
    def prefix_stats(self) -> PrefixStats:
        return self.tables.stats

    def pages_needed(self, num_positions: int) -> tuple[int, ...]:
        """Fewest pages of each cache group with which a text of num_positions can be computed."""
        return self.tables.pages_needed(num_positions)

    def fits(self, prompt_len: int, max_len: int) -> bool:
        """Whether a sequence could run if it were alone; otherwise it must be refused."""
        return self.tables.fits(max(prompt_len, max_len - 1))

    def wait_seconds(self) -> float | None:
        """How long nothing can be scheduled unless a sequence is added: 0 for now, None for ever."""
        seconds = 0.0 if self.num_running else self._gate.seconds(self.roster.waiting)
        return _WARM_UP_POLL if self._stuck and seconds == 0 else seconds

    def check_integrity(self) -> None:
        """
        Raises:
            IntegrityError: see integrity.check_scheduler.
        """
        check_scheduler(self)

    # The plan

    def schedule(self, buckets: Row[Bucket], max_steps: int | None = None) -> Plan | None:
        """Plans the next step for the buckets that are ready; the engine dispatches every plan it gets.

        Args:
            buckets: one of them runs it.
            max_steps: most decode steps in it, None as max_decode_steps says.

        Returns:
            None when nothing can be computed now.
        """
        self._end()
        self._memory.begin()
        self._gate.open(self.roster.waiting)
        # Had it nothing to do, it would be for the policy to say how long to wait.
        self._stuck = self.num_running > 0 or self._gate.seconds(self.roster.waiting) == 0
        head = self._head(buckets)
        room = Room.of(
            buckets,
            [*self.roster.prefilling, *([head] if head else [])],
            len(self.roster.decoding),
            max_tokens=self.config.max_step_tokens,
            fixed_chunk=self.config.fixed_chunk,
        )
        if room is None:
            return None
        self.num_plans += 1
        copies: Copies = tuple([] for _ in self.tables.num_pages)
        decode = self._decode_rows(room)
        chunks = self._prompt_rows(room, decode)
        admitted = self._admit(room, copies)
        chunks += admitted
        self._starved = room.starved and not chunks
        if not decode and not chunks:
            return None

        self._stuck = False
        num_tokens = len(decode) + sum(row.num_tokens for row in chunks)
        bucket = room.bucket(buckets, num_tokens, len(decode) + len(chunks))
        num_steps = 1
        if not chunks and not room.put_off and bucket.kind == "decode" and len(decode) == self.num_running:
            num_steps = self._decode_steps(decode, min(max_steps or self.max_decode_steps, self.max_decode_steps))
        rows = [PlannedRow(sequence, sequence.num_computed, 1, True) for sequence in decode]
        for sequence in decode:
            sequence.num_computed += num_steps
            sequence.num_drawn += num_steps
        self._ending += [sequence for sequence in decode if sequence.num_drawn >= sequence.max_len]
        started = tuple(row.sequence for row in admitted)
        preempted = tuple(self._memory.preempted)
        return Plan((*rows, *chunks), bucket, num_steps, started, copies, preempted, self.num_plans)

    def _end(self) -> None:
        """What the last plan left to be done when it was dispatched."""
        for sequence in self._ending:
            if sequence.status is Status.RUNNING:
                self.roster.drain(sequence)
                self._gate.leave(sequence)
        self._ending = []

    def _head(self, buckets: Row[Bucket]) -> Sequence | None:
        """The first waiting sequence, if it may start now as far as can be told without looking for pages."""
        if self.roster.free_slots:
            can_score = any(bucket.kind == "prompt" for bucket in buckets)
            for sequence in self.roster.waiting:
                if self._gate.admits(sequence) and (can_score or not sequence.scoring):
                    return None if sequence.num_unread or self._memory.is_blocked(sequence) else sequence
        return None

    def _decode_rows(self, room: Room) -> list[Sequence]:
        """Sequences with one token to compute that draws the next; all of them if there is room."""
        roster, space = self.roster, min(room.rows, room.tokens)
        if self._starved and roster.decoding:
            # A prompt found no room beside the decode rows last time: now it comes first.
            space = max(0, min(room.rows - 1, room.tokens - room.least))
        decode = roster.decoding[:space]
        if space < len(roster.decoding):
            roster.decoding = roster.decoding[space:] + decode
        short = [sequence for sequence in decode if sequence.num_computed >= sequence.touch_at]
        if short:
            for sequence in sorted(short, key=rank):
                if sequence.status is Status.RUNNING and not self._memory.grow(
                    sequence, sequence.num_computed + 1, roster.running
                ):
                    check(roster.num_running > 1, f"sequence {sequence.order} runs alone and finds no page")
                    self._memory.preempt(sequence)
            decode = [sequence for sequence in decode if sequence.status is Status.RUNNING]
        room.take(len(decode), len(decode))
        return decode

    def _prompt_rows(self, room: Room, decode: Row[Sequence]) -> list[PlannedRow]:
        """The next chunks of running sequences whose text is not computed yet."""
        if not self.roster.prefilling:
            return []
        rows: list[PlannedRow] = []
        planned = set(decode)
        unplanned = [sequence for sequence in self.roster.decoding if sequence not in planned]
        pending = sorted(self.roster.prefilling, key=rank)
        for i, sequence in enumerate(pending):
            if sequence.status is not Status.RUNNING or (sequence.scoring and not room.scoring):
                continue
            count = room.chunk(sequence, sequence.num_computed)
            if count == 0:
                room.starved = True
                break
            count = self._memory.fit(sequence, count, room, (*pending[i + 1 :], *unplanned))
            if count:
                rows.append(self._chunk(sequence, count, room))
        return rows

    def _admit(self, room: Room, copies: Copies) -> list[PlannedRow]:
        """Starts waiting sequences by rank, until the first that finds no slot, no room or no pages."""
        rows: list[PlannedRow] = []
        sources: list[tuple[int, int]] = []
        waiting, i = self.roster.waiting, 0
        if self._memory.preempted:
            room.put_off = True
            return rows
        while i < len(waiting) and self.roster.free_slots:
            sequence = waiting[i]
            if not self._gate.admits(sequence) or (sequence.scoring and not room.can_score):
                i += 1
                continue
            if self._memory.is_blocked(sequence):
                break
            if sequence.num_unread or (sequence.scoring and not room.scoring):
                # The next plan comes back to it: by then its tokens are read, or it is the head of the queue.
                room.put_off = True
                break
            match = self._match(sequence)
            if match.in_flight:
                room.put_off = True
                i += 1
                continue
            match = self._memory.affordable(sequence, match)
            if match is None:
                break
            count = room.chunk(sequence, self.tables.length(match))
            if count == 0:
                room.starved = room.put_off = True
                break
            rows.append(self._start(sequence, match, count, room, copies, sources))
        for group, page in sources:
            self.tables.cache.release(group, page)
        return rows

    def _start(
        self,
        sequence: Sequence,
        match: Match,
        count: int,
        room: Room,
        copies: Copies,
        sources: list[tuple[int, int]],
    ) -> PlannedRow:
        """Gives a waiting sequence a slot, the pages of its match and its first chunk.

        A page to copy from is retained and added to `sources`: nothing may overwrite it before the step.
        """
        self.roster.start(sequence)
        self.tables.start(sequence, match, caching=self.config.prefix_cache)
        copied = list(enumerate(match.source.pages)) if match.source else []
        for group, page in copied:
            self.tables.cache.retain(group, page)
        sources += copied
        count = self._memory.fit(sequence, count, room, ())
        check(count > 0, f"sequence {sequence.order} was promised pages that are not there")
        for group, page in copied:
            copies[group].append((page, sequence.pages[group][len(match.nodes)]))
        self._memory.start(sequence)
        return self._chunk(sequence, count, room)

    def _match(self, sequence: Sequence) -> Match:
        """What the prefix tree has of a sequence's text, without its last token: the next is drawn from its logits."""
        if not self.config.prefix_cache or sequence.namespace is None or sequence.scoring:
            return self.tables.no_match
        limit = len(sequence.tokens) - 1
        # A prompt that is cut at certain places begins at one: whatever others left there, its numbers are the same. An
        # answer that goes on finds its own pages, which decode has written.
        unit = 1 if len(sequence.tokens) > sequence.prompt_len else self.config.fixed_chunk or 1
        return self.tables.cache.match(sequence.namespace, sequence.tokens, limit, self.num_plans, unit)

    def _chunk(self, sequence: Sequence, count: int, room: Room) -> PlannedRow:
        """A row with the next `count` positions of a known text, counted as computed."""
        start, known = sequence.num_computed, sequence.num_drawn
        end = start + count
        draws = end == known < sequence.max_len
        room.take(count, 1)
        room.scored = room.scored or sequence.scoring
        sequence.num_computed = end
        sequence.num_drawn += draws
        sequence.prompt_scored = sequence.prompt_scored or end >= sequence.prompt_len
        if end == known:
            self.roster.decode(sequence)
            if sequence.num_drawn >= sequence.max_len:
                self._ending.append(sequence)
        self.tables.share(sequence, self.num_plans + 1)
        return PlannedRow(sequence, start, count, draws)

    def _decode_steps(self, decode: Row[Sequence], most: int) -> int:
        """Steps that all decode rows can go on without the host, with pages for them allocated."""
        steps = min(most, min(sequence.max_len - sequence.num_drawn for sequence in decode))
        while steps > 1 and not self.tables.can_grow(decode, steps):
            steps //= 2
        if steps > 1:
            for sequence in decode:
                if sequence.num_computed + steps > sequence.touch_at:
                    self.tables.grow(sequence, sequence.num_computed + steps)
        return max(1, steps)
