"""The requests of which a scheduler has sequences, and how each gets its tokens of a step."""

from collections.abc import Iterable
from collections.abc import Sequence as Items

from .live_request import LiveRequest
from .runner import Ticket
from .scheduler import Scheduler
from .sequence import Sequence, Status
from .types import Kind


class LiveRequests:
    """
    Args:
        scheduler: has every sequence that is here, and no other.

    Attributes:
        by_sequence: whom a sequence belongs to; those of a request leave it one by one as they end.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.by_sequence: dict[Sequence, LiveRequest] = {}
        self._scheduler = scheduler

    def __len__(self) -> int:
        return len(self.requests)

    def __contains__(self, live: LiveRequest) -> bool:
        return any(sequence in self.by_sequence for sequence in live.sequences)

    @property
    def requests(self) -> set[LiveRequest]:
        """All of them, at this moment; any thread may ask."""
        return set(self.by_sequence.copy().values())

    def add(self, live: LiveRequest) -> None:
        """Its sequences wait from now on."""
        for sequence in live.sequences:
            self.by_sequence[sequence] = live
            self._scheduler.add(sequence)

    def let_go(self, live: LiveRequest) -> None:
        """Takes every sequence of a request out of the scheduler."""
        for sequence in live.sequences:
            if self.by_sequence.pop(sequence, None) is not None:
                self._scheduler.finish(sequence)

    @property
    def begun(self) -> set[LiveRequest]:
        """Those of which a sequence has a slot."""
        return {live for sequence, live in self.by_sequence.items() if sequence.status is not Status.WAITING}

    def of(self, tickets: Iterable[Ticket]) -> set[LiveRequest]:
        """Those that take part in steps."""
        batch = {row.sequence for ticket in tickets for row in ticket.plan.rows}
        return {self.by_sequence[sequence] for sequence in batch if sequence in self.by_sequence}

    def started(self, ticket: Ticket, at: float) -> None:
        """A step that was planned `at` this time is dispatched: those that it admits have begun."""
        for sequence in ticket.plan.admitted:
            self.by_sequence[sequence].started(sequence, at)

    def read(self, ticket: Ticket, tokens: Items[Items[int]], now: float) -> None:
        """Hands the tokens of a step on; what goes wrong with one request ends that one alone."""
        first = 0
        for index, row in enumerate(ticket.plan.rows):
            live = self.by_sequence.get(row.sequence)
            if live is not None:
                try:
                    self._hand_on(live, ticket, index, tokens[index], slice(first, first + row.num_tokens), now)
                except Exception as error:
                    self.let_go(live)
                    live.fail(error)
            first += row.num_tokens

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
            self._scheduler.note_tokens(sequence, tokens[:taken])
        elif live.request.kind is not Kind.GENERATE:
            ended = row.start + row.num_tokens == sequence.prompt_len
        if ended:
            self._scheduler.finish(sequence)
            del self.by_sequence[sequence]
            live.finish()
