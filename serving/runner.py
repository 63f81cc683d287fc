"""Dispatches plans to the device, and reads what came of them."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from ..backends.base import CacheGroup
from ..models.step import PromptOutput, StepBatch
from .batch import BatchBuilder
from .logprobs import TokenLogprob
from .plan import Bucket, Plan
from .sequence import Sequence


@runtime_checkable
class Output(Protocol):
    """What of a StepOutput the host reads: tokens of each row, and where they were asked for the others."""

    @property
    def tokens(self) -> Any: ...

    @property
    def logprobs(self) -> Any: ...

    @property
    def prompt(self) -> Any: ...

    @property
    def expert_load(self) -> Any: ...


@runtime_checkable
class Device(Protocol):
    """Compiled programs and the arrays they keep on the device: Programs, or a model of them made for tests."""

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

    def admit(self, slots: list[int], histories: list[list[int]], rows: list[dict[str, np.ndarray]]) -> None: ...

    def copy_pages(self, copies: tuple[list[tuple[int, int]], ...]) -> None: ...

    def step(self, bucket: Bucket, batch: StepBatch) -> Output: ...

    def warm_up(self) -> None: ...

    def reset(self) -> None: ...

    def close(self) -> None: ...


class Ticket:
    """A step that was dispatched; what it left is on the device until somebody asks.

    Attributes:
        plan: what was to be computed.
        dispatched: when, in seconds.
    """

    def __init__(self, plan: Plan, output: Output, dispatched: float) -> None:
        self.plan = plan
        self.dispatched = dispatched
        self._output = output
        self._logprobs: Any = None  # TokenLogprobs of numpy arrays
        self._prompt: Any = None

    def tokens(self) -> list[list[int]]:
        """The tokens that each row drew, one for each step; waits for the device."""
        drawn = np.asarray(self._output.tokens)[: len(self.plan.rows), : self.plan.num_steps].tolist()
        if self.plan.num_steps > 1 and any(row[-1] < 0 for row in drawn):
            # Every row had ended: the steps that were left out are marked.
            drawn = [[token for token in row if token >= 0] for row in drawn]
        return drawn

    def logprob(self, row: int, step: int, token: int) -> TokenLogprob | None:
        """The log-probability of a token that was drawn; None where the row's request does not ask."""
        num_top = self.plan.rows[row].sequence.request.params.logprobs
        if num_top is None:
            return None
        if self._logprobs is None:
            self._logprobs = jax.tree.map(np.asarray, self._output.logprobs)
        of, at = self._logprobs, (row, step)
        return TokenLogprob.of(token, of.chosen[at].item(), of.rank[at].item(), of.top_ids[at], of.top[at], num_top)

    def expert_load(self) -> np.ndarray | None:
        """How many tokens chose each expert of each layer, and at the end how many waited [L, E + 1]; None where that
        is not counted."""
        load = self._output.expert_load
        return None if load is None else np.asarray(load).sum(axis=0)

    def prompt(self) -> PromptOutput:
        """What the step tells about prompts, as numpy arrays."""
        assert self._output.prompt is not None
        if self._prompt is None:
            self._prompt = jax.tree.map(np.asarray, self._output.prompt)
        return self._prompt


class Runner:
    """Runs plans in the order in which they come.

    Args:
        device: what computes.
        row: the sampling parameters of a sequence as numpy values, one for each field of SamplingRows.
    """

    def __init__(self, device: Device, row: Callable[[Sequence], dict[str, np.ndarray]]) -> None:
        self._device = device
        self._row = row
        self._batches = self._builder()

    def run(self, plan: Plan, clock: Callable[[], float]) -> Ticket:
        """Dispatches a plan; does not wait for it."""
        if any(plan.copies):
            self._device.copy_pages(plan.copies)
        if plan.admitted:
            self._device.admit(
                [sequence.slot for sequence in plan.admitted],  # pyright: ignore[reportArgumentType]
                [sequence.tokens for sequence in plan.admitted],
                [self._row(sequence) for sequence in plan.admitted],
            )
        batch = self._batches.build(plan)
        return Ticket(plan, self._device.step(plan.bucket, batch), clock())

    def reset(self) -> None:
        """Gives the device a new, empty cache."""
        self._device.reset()
        self._batches = self._builder()

    def _builder(self) -> BatchBuilder:
        device = self._device
        return BatchBuilder(device.num_slots, [-(-device.max_len // device.page_size)] * len(device.groups))
