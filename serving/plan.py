"""What one step computes: rows of sequences in a bucket."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from .sequence import Sequence

BucketKind = Literal["decode", "mixed", "prompt"]


@dataclass(frozen=True)
class Bucket:
    """The shape of one compiled program: T = num_tokens, B = num_rows.

    "decode" has one token in each row and may run several steps on the device; "mixed" takes any chunks; "prompt" is
    mixed and also returns the log-probabilities of every prompt token and pooled hidden states.
    """

    num_tokens: int
    num_rows: int
    kind: BucketKind


class PlannedRow(NamedTuple):
    """Positions `start : start + num_tokens` of a sequence; `draws` where they end its known text.

    A tuple because one is made for every row of every step.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    draws: bool


@dataclass(frozen=True)
class Plan:
    """One step, to be dispatched as soon as it is made.

    Attributes:
        rows: decode rows first.
        bucket: the program that runs them.
        num_steps: decode steps in this one call; above 1 only in decode buckets where every row draws.
        admitted: sequences that got a slot: their history and parameters are uploaded first. All have a row.
        copies: for each cache group the pages (source, destination) copied before the step.
        preempted: sequences that lost slot and pages to this plan.
        number: counts the plans of a scheduler.
    """

    rows: tuple[PlannedRow, ...]
    bucket: Bucket
    num_steps: int
    admitted: tuple[Sequence, ...]
    copies: tuple[list[tuple[int, int]], ...]
    preempted: tuple[Sequence, ...] = ()
    number: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens computed; the bucket's other ones are padding."""
        return sum(row.num_tokens for row in self.rows) * self.num_steps


_COST: dict[BucketKind, int] = {"decode": 0, "mixed": 1, "prompt": 2}


def smallest(buckets: Iterable[Bucket], num_tokens: int, num_rows: int, kinds: tuple[BucketKind, ...]) -> Bucket | None:
    """The cheapest bucket of these kinds that holds the work; None if none does."""
    fitting = [b for b in buckets if b.kind in kinds and b.num_tokens >= num_tokens and b.num_rows >= num_rows]
    return min(fitting, key=lambda b: (_COST[b.kind], b.num_tokens, b.num_rows), default=None)


def largest(buckets: Iterable[Bucket], *kinds: BucketKind) -> Bucket | None:
    """The bucket with most tokens, then rows, of the first of these kinds that has one ready."""
    buckets = tuple(buckets)
    for kind in kinds:
        of_kind = [b for b in buckets if b.kind == kind]
        if of_kind:
            return max(of_kind, key=lambda b: (b.num_tokens, b.num_rows))
    return None
