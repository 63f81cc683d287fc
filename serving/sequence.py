"""A sequence: one choice of one request, from its arrival to its last token."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import StrEnum

from .prefix_cache import Node
from .types import Kind, Request


class Status(StrEnum):
    """WAITING has no slot and no pages; RUNNING has both; DRAINING: all is drawn, the last tokens are unread."""

    WAITING = "waiting"
    RUNNING = "running"
    DRAINING = "draining"
    FINISHED = "finished"


class Private:
    """The prefix-cache namespace of a request that opted out: its own choices meet in it, nobody else."""

    def __init__(self, request: Request) -> None:
        self._request = request

    def __eq__(self, other: object) -> bool:
        # By identity: an equal request of somebody else is not this one.
        return isinstance(other, Private) and other._request is self._request

    def __hash__(self) -> int:
        return id(self._request)


@dataclass(eq=False, slots=True)
class Sequence:
    """One choice of one request.

    The text lives on the device; the host learns it a step late. `tokens` is what it has read, `num_drawn` the
    length of what is drawn, `num_computed` the positions whose keys and values are written by the steps dispatched
    so far. Written by the scheduler alone, once added.

    Attributes:
        tokens: prompt and answer.
        max_len: tokens (prompt and answer) at which it ends.
        order: counts the sequences submitted.
        arrival: seconds of the scheduler's clock.
        needs_prompt_logits: computes its whole prompt, in "prompt" buckets, whatever the prefix cache holds. A row
            that starts at position 0 starts over: what earlier rows returned is void.
        namespace: what it may share pages with in the prefix cache; None for nothing.
        pages: for each cache group the page of each `page_size` positions; -1 for those freed behind a window.
        num_cached: tokens of the prompt that came from the prefix cache at its first admission.
        rank: lower runs first and is preempted last.
        prompt_scored: all prompt logits are dispatched.
        num_preemptions: how often it lost its pages.
        num_freed: leading pages of each group that are freed.
        capacity: positions that `pages` hold.
        touch_at: value of num_computed at which pages must be allocated or freed.
        node: where its text has come to in the prefix tree (None: the root), page `num_shared` coming next.
        caching: whether its pages still go into the tree.
    """

    request: Request
    choice: int
    tokens: list[int]
    max_len: int
    order: int = 0
    arrival: float = 0.0
    needs_prompt_logits: bool = False
    namespace: Hashable | None = None
    prompt_len: int = field(init=False)
    num_computed: int = 0
    num_drawn: int = field(init=False)
    slot: int | None = None
    pages: list[list[int]] = field(default_factory=list, repr=False)
    num_cached: int = 0
    status: Status = Status.WAITING
    rank: tuple[float, int] = (0.0, 0)
    prompt_scored: bool = False
    num_preemptions: int = 0
    num_admissions: int = 0
    num_freed: list[int] = field(default_factory=list, repr=False)
    capacity: int = field(default=0, repr=False)
    touch_at: int = field(default=0, repr=False)
    node: Node | None = field(default=None, repr=False)
    num_shared: int = field(default=0, repr=False)
    caching: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        self.prompt_len = self.num_drawn = len(self.tokens)

    @classmethod
    def of(cls, request: Request, choice: int, *, max_len: int, order: int, arrival: float) -> "Sequence":
        """A choice of a request, ready to be added to a scheduler."""
        several = request.params.n > 1
        namespace: Hashable | None = ("shared", request.cache_salt)
        if not request.use_prefix_cache:
            namespace = Private(request) if several else None
        needs_prompt_logits = request.kind is not Kind.GENERATE or request.params.prompt_logprobs is not None
        return cls(request, choice, list(request.prompt), max_len, order, arrival, needs_prompt_logits, namespace)

    @property
    def scoring(self) -> bool:
        """Whether its next rows must return prompt logits."""
        return self.needs_prompt_logits and not self.prompt_scored

    @property
    def num_unread(self) -> int:
        """Tokens drawn that the host has not read."""
        return self.num_drawn - len(self.tokens)

    @property
    def num_positions(self) -> int:
        """Most positions that it ever writes: the last token's keys are never needed."""
        return max(self.prompt_len, self.max_len - 1)
