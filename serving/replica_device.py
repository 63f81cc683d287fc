"""What a replica in one program of several takes for its device: it keeps what is asked for until all have asked."""

from collections.abc import Sequence as Row
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from ..backends.base import CacheGroup
from ..models.step import StepBatch
from .plan import Bucket
from .runner import Output

type Admitted = tuple[list[int], list[list[int]], list[dict[str, np.ndarray]]]
"""Slots, texts and sampling parameters of rows that begin to run."""
type Copies = tuple[list[tuple[int, int]], ...]


@runtime_checkable
class SharedDevice(Protocol):
    """Programs of several replicas: sizes are those of one, and every call has something for each."""

    replicas: int
    num_slots: int
    max_len: int
    page_size: int
    num_pages: tuple[int, ...]
    groups: tuple[CacheGroup, ...]

    @property
    def compile_seconds(self) -> float: ...

    @property
    def is_warm(self) -> bool: ...

    @property
    def buckets(self) -> tuple[Bucket, ...]: ...

    def admit_all(self, admitted: Row[Admitted]) -> None: ...

    def copy_all(self, copies: Row[Copies]) -> None: ...

    def step_all(self, bucket: Bucket, batches: Row[StepBatch]) -> Output: ...

    def warm_up(self) -> None: ...

    def reset(self) -> None: ...

    def close(self) -> None: ...


class Whole:
    """What a step of all replicas left, as numpy arrays once somebody asks."""

    def __init__(self, output: Output) -> None:
        self._output = output

    @cached_property
    def tokens(self) -> Any:
        return np.asarray(self._output.tokens)

    @cached_property
    def logprobs(self) -> Any:
        return jax.tree.map(np.asarray, self._output.logprobs)

    @cached_property
    def prompt(self) -> Any:
        return jax.tree.map(np.asarray, self._output.prompt)

    @cached_property
    def expert_load(self) -> Any:
        return jax.tree.map(np.asarray, self._output.expert_load)


class Part:
    """One replica's part of what a step left, to be read once it has been dispatched."""

    def __init__(self) -> None:
        self._whole: Whole | None = None
        self._number, self._replicas = 0, 1

    def fill(self, whole: Whole, number: int, replicas: int) -> None:
        """The step has been dispatched; this is number `number` of so many equal parts."""
        self._whole, self._number, self._replicas = whole, number, replicas

    @property
    def tokens(self) -> Any:
        return self._of("tokens")

    @property
    def logprobs(self) -> Any:
        return self._of("logprobs")

    @property
    def prompt(self) -> Any:
        return self._of("prompt")

    @property
    def expert_load(self) -> Any:
        return self._of("expert_load")

    def _of(self, name: str) -> Any:
        assert self._whole is not None, "a step is read that was not dispatched"

        def part(leaf: np.ndarray) -> np.ndarray:
            size = len(leaf) // self._replicas
            return leaf[self._number * size : (self._number + 1) * size]

        return jax.tree.map(part, getattr(self._whole, name))


class ReplicaDevice:
    """A Device for the engine of one replica.

    Attributes:
        lost: the engine has given its cache up, so that everybody's is to be made anew.
    """

    def __init__(self, shared: SharedDevice) -> None:
        self._shared = shared
        self.num_slots, self.max_len = shared.num_slots, shared.max_len
        self.page_size, self.num_pages, self.groups = shared.page_size, shared.num_pages, shared.groups
        self.lost = False
        self.forget()

    def forget(self) -> None:
        """Nothing is asked for any more."""
        self.admitted: Admitted = ([], [], [])
        self.copies: Copies = tuple([] for _ in self.num_pages)
        self.work: tuple[StepBatch, Part] | None = None

    @property
    def compile_seconds(self) -> float:
        return self._shared.compile_seconds

    @property
    def is_warm(self) -> bool:
        return self._shared.is_warm

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        return self._shared.buckets

    def admit(self, slots: list[int], histories: list[list[int]], rows: list[dict[str, np.ndarray]]) -> None:
        self.admitted = slots, histories, rows

    def copy_pages(self, copies: Copies) -> None:
        self.copies = copies

    def step(self, bucket: Bucket, batch: StepBatch) -> Part:
        part = Part()
        self.work = batch, part  # the bucket will be one that suits all
        return part

    def warm_up(self) -> None:
        self._shared.warm_up()

    def reset(self) -> None:
        self.lost = True
        self.forget()

    def close(self) -> None:
        """The devices are closed for all replicas at once."""


def widened(batch: StepBatch, num_rows: int, num_slots: int) -> StepBatch:
    """The batch with empty rows behind its own, `num_rows` in all."""
    more = num_rows - len(batch.slots)

    def rows(leaf: Any, fill: Any) -> Any:
        leaf = np.asarray(leaf)
        return np.pad(leaf, [(0, more), *[(0, 0)] * (leaf.ndim - 1)], constant_values=fill)

    starts = np.asarray(batch.query_starts)
    arrays: Any = (
        rows(batch.slots, num_slots),
        rows(starts, starts[-1]),
        rows(batch.kv_lens, 0),
        tuple(rows(table, 0) for table in batch.page_tables),
        rows(batch.draws, False),
        np.asarray(batch.num_steps, np.int32),
    )
    return StepBatch(*arrays)


def emptied(batch: StepBatch, num_slots: int) -> StepBatch:
    """A batch of the same shape with nothing to do."""
    arrays: Any = (
        np.full_like(batch.slots, num_slots),
        np.zeros_like(batch.query_starts),
        np.zeros_like(batch.kv_lens),
        tuple(np.zeros_like(table) for table in batch.page_tables),
        np.zeros_like(batch.draws),
        np.asarray(1, np.int32),
    )
    return StepBatch(*arrays)
