"""Pages for the rows of a plan: from the pool, from the prefix tree, or from sequences that must give way."""

from collections.abc import Sequence as Row

from .page_tables import PageTables
from .prefix_cache import Match
from .room import Room
from .roster import Roster, rank
from .sequence import Sequence, Status


class Memory:
    """Decides who gets pages when they run short.

    A sequence gives way to one of lower rank only, the highest rank first, and is computed anew later. So the one of
    lowest rank always finds pages, whatever else is planned: it ends, and then the next one is the lowest.
    """

    def __init__(self, tables: PageTables, roster: Roster) -> None:
        self.num_preemptions = 0
        self.preempted: list[Sequence] = []  # by the plan that is being made
        self._tables = tables
        self._roster = roster
        self._blocked: tuple[Sequence, list[int]] | None = None  # found too few pages, when there were so many
        self._reserve: list[int] | None = None  # pages that running sequences will need

    def begin(self) -> None:
        """A new plan is made."""
        self.preempted = []
        self._reserve = None

    def forget_blocked(self) -> None:
        """Who found too few pages may look again."""
        self._blocked = None

    def is_blocked(self, sequence: Sequence) -> bool:
        """Whether it found too few pages lately, and there are no more now."""
        if self._blocked is None or self._blocked[0] is not sequence or not self._roster.num_running:
            return False
        return all(now <= then for now, then in zip(self._tables.available(), self._blocked[1], strict=True))

    def affordable(self, sequence: Sequence, match: Match) -> Match | None:
        """The match if there are pages for what is behind it, perhaps without the page to copy; None if not."""
        while True:
            if self._reserve is None:
                self._reserve = self._tables.reserve(self._roster.running)
            for candidate in (match, match.without_source):
                if candidate and self._tables.affords(sequence, candidate, self._reserve):
                    return candidate
            if not self._release_drained():
                self._blocked = (sequence, self._tables.available())
                return None

    def start(self, sequence: Sequence) -> None:
        """A waiting sequence has got its first pages."""
        if self._reserve is not None:
            more = self._tables.reserve([sequence])
            self._reserve = [old + new for old, new in zip(self._reserve, more, strict=True)]

    def fit(self, sequence: Sequence, count: int, room: Room, others: Row[Sequence]) -> int:
        """Allocates for the next `count` positions or as many as there are pages for; `others` give way for a piece."""
        start = sequence.num_computed
        self._tables.free_behind(sequence)
        fitting = room.cut(sequence, start, min(start + count, self._tables.reach(sequence)))
        if fitting > 0 and self._tables.grow(sequence, start + fitting):
            return fitting
        end = room.piece_end(sequence, start)
        return end - start if self.grow(sequence, end, others) else 0

    def grow(self, sequence: Sequence, end: int, others: Row[Sequence]) -> bool:
        """Allocates up to position `end`; those of `others` that run give way. False if it is not enough."""
        while not self._tables.grow(sequence, end):
            if self._release_drained():
                continue
            worse = [o for o in others if o.rank > sequence.rank and o.status is Status.RUNNING]
            if not worse:
                return False
            self.preempt(max(worse, key=rank))
        return True

    def preempt(self, sequence: Sequence) -> None:
        """Takes slot and pages; the sequence waits in its old place."""
        self._roster.remove(sequence)
        self._tables.release(sequence)
        self._roster.wait(sequence)
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.preempted.append(sequence)
        self._reserve = None

    def _release_drained(self) -> bool:
        """Frees pages that nobody writes any more, kept for the sake of texts that the host will have read."""
        drained = [sequence for sequence in self._roster.draining if sequence.pages]
        for sequence in drained:
            self._tables.release(sequence)
        return bool(drained)
