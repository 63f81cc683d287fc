"""Where each sequence stands, and the slots of those that run."""

from bisect import bisect_left, insort
from itertools import chain

from .sequence import Sequence, Status


def rank(sequence: Sequence) -> tuple[float, int]:
    """Lower goes first."""
    return sequence.rank


class Roster:
    """All sequences that have not finished, each in one list by its status.

    Attributes:
        waiting: by rank.
        prefilling: running, with known text to compute.
        decoding: running, one position behind their text.
        draining: drawn to the end; the last tokens are unread.
        free_slots: of num_slots.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.waiting: list[Sequence] = []
        self.prefilling: list[Sequence] = []
        self.decoding: list[Sequence] = []
        self.draining: list[Sequence] = []
        self.free_slots = list(reversed(range(num_slots)))

    @property
    def num_running(self) -> int:
        return len(self.decoding) + len(self.prefilling)

    @property
    def running(self) -> list[Sequence]:
        return [*self.decoding, *self.prefilling]

    def wait(self, sequence: Sequence) -> None:
        """Queues a sequence that stands nowhere; its text is computed from the start."""
        sequence.status = Status.WAITING
        sequence.num_computed = 0
        insort(self.waiting, sequence, key=rank)

    def start(self, sequence: Sequence) -> None:
        """Gives a waiting sequence a slot."""
        self.remove(sequence)
        sequence.slot = self.free_slots.pop()
        sequence.status = Status.RUNNING
        self.prefilling.append(sequence)

    def decode(self, sequence: Sequence) -> None:
        """The known text of a running sequence is computed."""
        self.prefilling.remove(sequence)
        self.decoding.append(sequence)

    def drain(self, sequence: Sequence) -> None:
        """Everything is drawn, so the slot is free; the pages stay until the last tokens are read."""
        self.remove(sequence)
        sequence.status = Status.DRAINING
        self.draining.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence from its list, and its slot."""
        match sequence.status:
            case Status.WAITING:
                del self.waiting[bisect_left(self.waiting, sequence.rank, key=rank)]
            case Status.DRAINING:
                self.draining.remove(sequence)
            case Status.RUNNING:
                (self.prefilling if sequence in self.prefilling else self.decoding).remove(sequence)
            case Status.FINISHED:
                return
        if sequence.slot is not None:
            self.free_slots.append(sequence.slot)
            sequence.slot = None

    def requeue_all(self) -> list[Sequence]:
        """Sends every sequence back to the queue; returns those that had left it."""
        started = list(chain(self.decoding, self.prefilling, self.draining))
        for sequence in started:
            self.remove(sequence)
            self.wait(sequence)
        return started
