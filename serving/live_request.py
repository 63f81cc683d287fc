"""A request inside the engine: its sequences, what they have produced, and when."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..backends.errors import DistaffError
from ..models.step import PromptOutput
from .generation import Outlet, Start
from .logprobs import TokenLogprob
from .metrics import Metrics
from .output import Output
from .plan import PlannedRow
from .results import FinishReason, Timings, TokenEvent
from .sampling_params import SamplingParams
from .sequence import Sequence
from .types import Kind, Request


class LiveRequest:
    """From submission to its last token.

    Attributes:
        sequences: one for each choice (one for a request that draws nothing).

    Args:
        request: with the seed filled in.
        output: what its tokens become.
        sequences: not yet added to a scheduler.
        metrics: where times are counted.
        timings: seconds that were spent before (loading).
        compile_seconds: how long the engine has compiled so far.
        outbox: where to put what comes out.
    """

    def __init__(
        self,
        request: Request,
        output: Output,
        sequences: tuple[Sequence, ...],
        metrics: Metrics,
        timings: Timings,
        compile_seconds: Callable[[], float],
        outbox: Outlet,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.request = request
        self.sequences = sequences
        self.outbox = outbox
        self._output = output
        self._metrics = metrics
        self._clock = clock
        self._arrival = clock()
        self._timings = timings
        self._compile_seconds = compile_seconds
        self._compiled_before = compile_seconds()
        self._started: float | None = None
        self._first: list[float] = [0.0] * len(sequences)
        self._last: list[float | None] = [None] * len(sequences)
        self._hidden_sum: np.ndarray | None = None
        self._hidden_last: np.ndarray | None = None
        metrics.submitted(len(request.prompt))

    def started(self, sequence: Sequence, at: float) -> None:
        """One of its sequences got a slot at this time. What its first step took since, compiling included, is no
        waiting."""
        if self._started is None:
            self._started = at
            self._timings.queue = self._started - self._arrival
            self._metrics.admitted(self._timings.queue)
            self.outbox.begin(Start(self._timings.queue, sequence.num_cached, self._effective()))
            for choice in self._output.choices:
                self._put(choice.echo())
        if not sequence.num_preemptions and not sequence.needs_prompt_logits and sequence.namespace is not None:
            self._metrics.looked_up(sequence.prompt_len, sequence.num_cached)

    def take(self, choice: int, token: int, logprob: TokenLogprob | None, now: float) -> bool:
        """The next token of a choice; returns whether that choice has ended."""
        event = self._output.choices[choice].add(token, logprob)
        last, self._last[choice] = self._last[choice], now
        if last is None:
            self._first[choice] = now
            if choice == 0 and self._output.prompt_logprobs is not None:
                self.outbox.read(self._output.prompt_logprobs)
            self._metrics.first_token(now - self._arrival, self.request.counts_as)
            if not self._timings.ttft:
                self._timings.ttft = now - self._arrival
                self._timings.prefill = now - (self._started or now)
        else:
            self._metrics.next_token(now - last)
            self._timings.decoded_tokens += 1
            self._timings.decode = now - self._arrival - self._timings.ttft
        self._put(event)
        if event.finish_reason is not None:
            count = self._output.choices[choice].num_generated
            self._metrics.answered(now - self._first[choice], count, self.request.counts_as)
        return event.finish_reason is not None

    def take_prompt(self, row: PlannedRow, at: slice, index: int, prompt: PromptOutput) -> None:
        """What a step computed of this request's prompt: tokens `at` of the step, row `index`."""
        start, end = row.start, row.start + row.num_tokens
        told = min(end, len(self.request.prompt) - 1) - start
        wants_logprobs = self.request.params.prompt_logprobs is not None or self.request.kind is Kind.SCORE
        if row.sequence.choice == 0 and wants_logprobs and told > 0:
            # What stands behind token i is told in row i, and is position i + 1.
            where, logprobs = slice(at.start, at.start + told), prompt.logprobs
            num_top = self.request.params.prompt_logprobs or 0
            self._output.add_prompt(
                start + 1,
                np.asarray(logprobs.chosen[where]),
                np.asarray(logprobs.rank[where]),
                np.asarray(logprobs.top_ids[where, :num_top]),
                np.asarray(logprobs.top[where, :num_top]),
            )
        if self.request.kind is Kind.EMBED:
            summed = np.asarray(prompt.hidden_sum[index])
            self._hidden_sum = summed if start == 0 or self._hidden_sum is None else self._hidden_sum + summed
            self._hidden_last = np.asarray(prompt.hidden_last[index])

    def finish(self) -> bool:
        """Ends the stream if every sequence has ended; returns whether it did."""
        if self.request.kind is Kind.GENERATE and not self._output.finished:
            return False
        self._timings.compile = self._compile_seconds() - self._compiled_before
        cached = self.sequences[0].num_cached
        if self.request.kind is Kind.GENERATE:
            result = self._output.completion(self._timings, cached_tokens=cached)
            reason = result.finish_reason
        elif self.request.kind is Kind.SCORE:
            result, reason = self._output.score(self._timings), FinishReason.STOP
        else:
            assert self._hidden_sum is not None and self._hidden_last is not None
            mean = self._hidden_sum / len(self.request.prompt)
            vector = mean if self.request.pooling == "mean" else self._hidden_last
            result, reason = self._output.embedding(vector, self._timings), FinishReason.STOP
        self._end(reason)
        self.outbox.end(result, None, result.usage, self._timings)
        return True

    def abort(self) -> None:
        """The caller wants no more: what came so far is the answer."""
        self._cut(FinishReason.ABORT)
        cached = self.sequences[0].num_cached
        if self.request.kind is Kind.GENERATE:
            result = self._output.completion(self._timings, cached_tokens=cached)
            self.outbox.end(result, None, result.usage, self._timings)
        else:
            error = DistaffError(f"the {self.request.kind} request was ended by its caller")
            self.outbox.end(None, error, self._output.usage(cached), self._timings)

    def fail(self, error: BaseException) -> None:
        """Ends the stream with an error."""
        self._cut(FinishReason.ERROR, type(error).__name__)
        self.outbox.end(None, error, self._output.usage(self.sequences[0].num_cached), self._timings)

    def _effective(self) -> SamplingParams:
        """What the answer is really drawn with."""
        if self.request.kind is not Kind.GENERATE:
            return self.request.params
        params, most = self.request.params, self._output.max_tokens
        return replace(params, max_tokens=most, min_tokens=min(params.min_tokens, most))

    def _cut(self, reason: FinishReason, error: str = "") -> None:
        for choice in self._output.choices:
            if choice.finish_reason is None:
                self._put(choice.end(reason))
        self._end(reason, error)

    def _end(self, reason: FinishReason, error: str = "") -> None:
        kind, timings = self.request.counts_as, self._timings
        self._metrics.finished(reason.value, self._clock() - self._arrival, kind=kind, error=error)
        if timings.ttft:
            self._metrics.ran_for(timings.prefill, timings.decode, self._output.usage().completion_tokens)

    def _put(self, event: TokenEvent | None) -> None:
        if event is not None:
            self.outbox.put(event)


def with_seed(request: Request, seed: int) -> Request:
    """The request with a seed, its own if it has one."""
    if request.params.seed is not None:
        return request
    return replace(request, params=replace(request.params, seed=seed))
