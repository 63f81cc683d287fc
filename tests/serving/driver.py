"""Runs a scheduler against the fake programs, reading tokens a step late, as the engine does."""

from collections import deque
from collections.abc import Sequence as Row

from distaff.models.step import StepOutput
from distaff.serving.batch import BatchBuilder
from distaff.serving.plan import Bucket, Plan
from distaff.serving.sampling_params import SamplingParams
from distaff.serving.scheduler import Scheduler
from distaff.serving.scheduler_config import SchedulerConfig
from distaff.serving.sequence import Sequence, Status
from distaff.serving.types import Kind, Request

from ..fakes import FakePrograms, continuation

BUCKETS = (
    Bucket(1, 1, "decode"),
    Bucket(4, 4, "decode"),
    Bucket(8, 8, "decode"),
    Bucket(16, 8, "mixed"),
    Bucket(32, 8, "mixed"),
    Bucket(32, 8, "prompt"),
)
MIXED = (Bucket(4, 4, "decode"), Bucket(16, 4, "mixed"))


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Driver:
    """A scheduler, its fake programs, and what should come out.

    `lag` steps are dispatched before the oldest one is read.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        *,
        page_size: int = 4,
        num_pages: Row[int] = (64,),
        windows: Row[int | None] = (None,),
        buckets: Row[Bucket] = BUCKETS,
        max_len: int = 64,
        lag: int = 1,
        eos: int | None = None,
        vocab_size: int = 101,
    ) -> None:
        self.clock = Clock()
        self.windows = tuple(windows)
        self.max_len = max_len
        self.lag = lag
        self.eos = eos
        self.vocab_size = vocab_size
        self.programs = FakePrograms(
            buckets,
            num_slots=config.max_batch,
            max_len=max_len,
            page_size=page_size,
            num_pages=num_pages,
            windows=windows,
            vocab_size=vocab_size,
        )
        self.scheduler = Scheduler(config, page_size, num_pages, self.programs.groups, self.clock)
        self.buckets = tuple(buckets)
        self.batches = self._builder()
        self.in_flight: deque[tuple[Plan, StepOutput]] = deque()
        self.sequences: list[Sequence] = []
        self.plans: list[Plan] = []

    def submit(
        self,
        prompt: Row[int],
        max_tokens: int = 8,
        *,
        n: int = 1,
        priority: int = 0,
        salt: str | None = None,
        use_prefix_cache: bool = True,
        kind: Kind = Kind.GENERATE,
        prompt_logprobs: int | None = None,
        seed: int = 0,
    ) -> list[Sequence]:
        """Adds a request's choices; those that never fit are left out, as the engine refuses them."""
        params = SamplingParams(n=n, seed=seed, prompt_logprobs=prompt_logprobs)
        if kind is not Kind.GENERATE:
            params, max_tokens = SamplingParams(seed=seed), 0
        request = Request(
            tuple(prompt), params, kind, priority=priority, cache_salt=salt, use_prefix_cache=use_prefix_cache
        )
        max_len = min(self.max_len, len(prompt) + max_tokens)
        if not self.scheduler.fits(len(prompt), max_len):
            return []
        added = []
        for choice in range(n if kind is Kind.GENERATE else 1):
            order, now = len(self.sequences), self.clock()
            sequence = Sequence.of(request, choice, max_len=max_len, order=order, arrival=now)
            self.sequences.append(sequence)
            self.scheduler.add(sequence)
            added.append(sequence)
        return added

    def step(self, buckets: Row[Bucket] | None = None) -> Plan | None:
        """Plans and dispatches a step, and reads the oldest one in flight if there is none to plan, or enough."""
        plan = self.scheduler.schedule(self.buckets if buckets is None else buckets)
        self.scheduler.check_integrity()
        if plan is not None:
            self.dispatch(plan)
        if self.in_flight and (plan is None or len(self.in_flight) > self.lag):
            self.read()
        return plan

    def dispatch(self, plan: Plan) -> None:
        self.plans.append(plan)
        admitted = plan.admitted
        if (fixed := self.scheduler.config.fixed_chunk) is not None:
            assert all(row.draws or (end := row.start + row.num_tokens) % fixed == 0 or end == row.sequence.max_len
                       for row in plan.rows)  # fmt: skip
            assert all(row.start % fixed == 0 or max(row.start + 1, len(row.sequence.tokens)) > row.sequence.prompt_len
                       for row in plan.rows)  # fmt: skip
        assert {s.order for s in admitted} <= {row.sequence.order for row in plan.rows}
        self.programs.admit(
            [s.slot for s in admitted if s.slot is not None],
            [list(s.tokens) for s in admitted],
            [
                {
                    "seeds": [s.request.params.seed, 0],
                    "choices": s.choice,
                    "stop_ids": [] if self.eos is None else self.eos,
                }
                for s in admitted
            ],
        )
        self.programs.copy_pages(plan.copies)
        batch = self.batches.build(plan)
        self.in_flight.append((plan, self.programs.step(plan.bucket, batch)))

    def read(self) -> None:
        """Hands the tokens of the oldest step in flight to their sequences."""
        plan, output = self.in_flight.popleft()
        for b, row in enumerate(plan.rows):
            sequence = row.sequence
            if sequence.status is Status.FINISHED:
                continue
            tokens = [int(token) for token in output.tokens[b] if token >= 0] if row.draws else []
            if self.eos in tokens:
                tokens = tokens[: tokens.index(self.eos) + 1]
            self.scheduler.note_tokens(sequence, tokens)
            complete = len(sequence.tokens) >= sequence.max_len and (
                row.draws or row.start + row.num_tokens == sequence.max_len
            )
            if complete or (tokens and tokens[-1] == self.eos):
                self.finish(sequence)
        self.scheduler.check_integrity()

    def finish(self, sequence: Sequence) -> None:
        """Ends a sequence whose text is complete, comparing it with the one computed by hand."""
        self.scheduler.finish(sequence)
        assert sequence.tokens == self.expected(sequence)

    def expected(self, sequence: Sequence) -> list[int]:
        return continuation(
            sequence.request.prompt,
            sequence.max_len,
            (sequence.request.params.seed or 0) + sequence.choice,
            windows=self.windows,
            vocab_size=self.vocab_size,
            eos=self.eos,
        )

    def run(self) -> None:
        """Steps until everything has ended, which must not take several times the tokens that there are."""
        self.scheduler.flush()
        max_steps = 100 + 4 * sum(sequence.max_len for sequence in self.sequences)
        for _ in range(max_steps):
            if self.step() is None and not self.in_flight:
                wait = self.scheduler.wait_seconds()
                if wait is None:
                    break
                self.clock.now += wait
        else:
            raise AssertionError(f"not done after {max_steps} steps")
        assert all(s.status is Status.FINISHED for s in self.sequences), "a sequence was forgotten"

    def reset(self) -> None:
        """The device fails: what is in flight is lost."""
        self.in_flight.clear()
        self.programs.reset()
        self.batches = self._builder()
        self.scheduler.reset()
        self.scheduler.check_integrity()

    def check_empty(self) -> None:
        """Nothing runs: after the tree is cleared, every page is free."""
        self.scheduler.tables.cache.clear()
        self.scheduler.check_integrity()
        for pool in self.scheduler.tables.cache.pools:
            assert pool.num_free == pool.num_pages

    def _builder(self) -> BatchBuilder:
        num_pages = -(-self.max_len // self.programs.page_size)
        return BatchBuilder(self.programs.num_slots, [num_pages] * len(self.windows))


def shape(plan: Plan | None) -> list[tuple[int, int, int, bool]]:
    """(order, start, num_tokens, draws) of each row."""
    assert plan is not None
    return [(row.sequence.order, row.start, row.num_tokens, row.draws) for row in plan.rows]


def text(length: int, first: int = 0) -> list[int]:
    """Tokens of a prompt."""
    return [(first + i) % 90 for i in range(length)]
