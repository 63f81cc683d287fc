"""What is left of a step while it is planned."""

from collections.abc import Sequence as Row
from dataclasses import dataclass

from .plan import Bucket, BucketKind, largest, smallest
from .sequence import Sequence


@dataclass
class Room:
    """Tokens and rows that a step may still take, and what has happened to it.

    Attributes:
        tokens, rows: left.
        max_chunk: most tokens of one row.
        fixed_chunk: see SchedulerConfig.
        scoring: rows may return prompt logits; the bucket is for them.
        can_score: a bucket for them is ready, if not taken for this step.
        scored: a row returns prompt logits.
        starved: a prompt found no room.
        put_off: a waiting sequence may start with the next plan.
    """

    tokens: int
    rows: int
    max_chunk: int
    fixed_chunk: int | None
    scoring: bool
    can_score: bool
    scored: bool = False
    starved: bool = False
    put_off: bool = False

    @classmethod
    def of(
        cls,
        buckets: Row[Bucket],
        prompts: Row[Sequence],
        num_decoding: int,
        *,
        max_tokens: int,
        fixed_chunk: int | None,
    ) -> "Room | None":
        """The largest step that the ready buckets allow for this work; None where they allow none.

        Args:
            buckets: those that are ready.
            prompts: sequences with known text to compute, the first that waits among them.
            num_decoding: rows of one token.
            max_tokens: of the step.
            fixed_chunk: see SchedulerConfig.
        """
        can_score = any(bucket.kind == "prompt" for bucket in buckets)
        scoring = can_score and any(sequence.scoring for sequence in prompts)
        if scoring:
            bucket = largest(buckets, "prompt")
        elif prompts:
            bucket = largest(buckets, "mixed", "prompt", "decode")
        else:
            bucket = max(buckets, key=lambda b: b.num_rows, default=None) if num_decoding else None
        if bucket is None:
            return None
        tokens = min(bucket.num_tokens, max_tokens)
        max_chunk = 1 if bucket.kind == "decode" else tokens
        return cls(tokens, bucket.num_rows, max_chunk, fixed_chunk, scoring, can_score)

    @property
    def least(self) -> int:
        """Tokens of a step that surely take the next prompt a piece further."""
        return min(self.tokens, self.fixed_chunk or 1)

    def chunk(self, sequence: Sequence, start: int) -> int:
        """Tokens of a row that starts at `start`; 0 if no whole piece finds room."""
        return self.cut(sequence, start, start + min(self.tokens, self.max_chunk)) if self.rows > 0 else 0

    def cut(self, sequence: Sequence, start: int, end: int) -> int:
        """Tokens of a row that starts at `start` and ends at `end` at the latest."""
        if end >= sequence.num_drawn:
            return sequence.num_drawn - start
        if self.fixed_chunk:
            end -= end % self.fixed_chunk
        return max(0, end - start)

    def piece_end(self, sequence: Sequence, start: int) -> int:
        """Where the shortest row from `start` on ends."""
        size = self.fixed_chunk or 1
        return min(sequence.num_drawn, start - start % size + size)

    def take(self, num_tokens: int, num_rows: int) -> None:
        self.tokens -= num_tokens
        self.rows -= num_rows

    def bucket(self, buckets: Row[Bucket], num_tokens: int, num_rows: int) -> Bucket:
        """The cheapest bucket for what has been planned."""
        kinds: tuple[BucketKind, ...] = ("decode", "mixed", "prompt")
        if self.scored:
            kinds = ("prompt",)
        elif num_tokens > num_rows:
            kinds = ("mixed", "prompt")
        bucket = smallest(buckets, num_tokens, num_rows, kinds)
        assert bucket is not None  # the room was that of one
        return bucket
