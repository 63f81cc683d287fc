"""What the engine counts: cheap enough to be called at every token, and flat in memory. telemetry/ exports it.

Several threads write: those of engines that count together, of callers, and of warm-up. Any may take a `snapshot()` at
any moment; it does not wait for them.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np

from .bounds import (
    LATENCY_BOUNDS,
    QUEUE_BOUNDS,
    REQUEST_BOUNDS,
    STEP_BOUNDS,
    STEP_TOKEN_BOUNDS,
    TOKEN_BOUNDS,
    TTFT_BOUNDS,
)
from .expert_load import ExpertLoad
from .percentiles import QUANTILES
from .plan import Plan

_GROWTH = 1.04
ACCURACY = math.sqrt(_GROWTH) - 1
"""How far, relative to the true one, a quantile may be off (2 %)."""

_LOW, _HIGH = 1e-6, 1e6
_SCALE = 1 / math.log(_GROWTH)
_FIRST = math.floor(math.log(_LOW) * _SCALE)
_NUM_BUCKETS = math.ceil(math.log(_HIGH) * _SCALE) - _FIRST + 2


class Histogram:
    """Positive values in buckets that grow by 4 % each, from 1e-6 to 1e6; what lies outside counts as the nearest.

    Args:
        bounds: rising values at which `below` counts exactly.
    """

    __slots__ = ("_bounds", "_counts", "_exact", "_high", "_low", "total")

    def __init__(self, bounds: Sequence[float] = ()) -> None:
        self._bounds = tuple(bounds)
        self._exact = [0] * (len(bounds) + 1)
        self._counts = [0] * _NUM_BUCKETS
        self._low = math.inf
        self._high = -math.inf
        self.total = 0.0
        """Sum of the values."""

    def add(self, value: float, count: int = 1) -> None:
        """Counts `value`, `count` times."""
        bucket = 0
        if value > _LOW:
            bucket = int(math.log(value) * _SCALE - _FIRST) + 1 if value < _HIGH else -1
        self._counts[bucket] += count
        self._exact[bisect_left(self._bounds, value)] += count
        self.total += value * count
        if value < self._low:
            self._low = value
        if value > self._high:
            self._high = value

    @property
    def count(self) -> int:
        """How many values were counted."""
        return sum(self._counts)

    def below(self, bounds: Sequence[float]) -> list[int]:
        """How many values do not exceed each of `bounds`, and last how many there are; nothing is rounded.

        Args:
            bounds: of those that the histogram was made with.
        """
        counts = self._exact.copy()  # a writer may go on meanwhile
        sums: list[int] = []
        for count in counts:
            sums.append(count + (sums[-1] if sums else 0))
        return [sums[self._bounds.index(bound)] for bound in bounds] + [sums[-1]]

    def quantile(self, share: float) -> float:
        """The smallest value that `share` (0 to 1) of all do not exceed, within ACCURACY; 0.0 if there is none."""
        counts = self._counts.copy()  # a writer may go on meanwhile
        rank = max(1, math.ceil(share * sum(counts)))
        below = 0
        for bucket, count in enumerate(counts):
            below += count
            if count and below >= rank:
                middle = math.exp((_FIRST + bucket - 0.5) / _SCALE)
                return min(max(middle, self._low), self._high)
        return 0.0

    def snapshot(self) -> dict[str, float]:
        """Count, sum, mean, largest value and QUANTILES."""
        count = self.count
        return {
            "count": count,
            "sum": self.total,
            "mean": self.total / count if count else 0.0,
            "max": self._high if count else 0.0,
            **{f"p{share * 100:g}": self.quantile(share) for share in QUANTILES},
        }


class Phase:
    """Steps of one sort: those that compute prompt tokens (`prefill`), and those that only draw (`decode`).

    Attributes:
        calls: calls into the device.
        steps: times that the weights were gone through; a call of K decode steps counts K.
        seconds: that the device was at work.
        rows: sequences in each step, summed.
        tokens: tokens computed; `bucket_tokens` counts the padding too, `prompt_tokens` those of prompts alone.
        drawn: tokens that came out.
        attended, read: key positions, as models.costs.Steps has them.
    """

    __slots__ = (
        *("attended", "bucket_tokens", "calls", "drawn", "prompt_tokens"),
        *("read", "rows", "seconds", "steps", "tokens"),
    )

    def __init__(self) -> None:
        self.calls = self.steps = self.rows = self.drawn = self.attended = self.read = 0
        self.tokens = self.prompt_tokens = self.bucket_tokens = 0
        self.seconds = 0.0

    def snapshot(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in self.__slots__}


class Metrics:
    """Counters, levels and histograms of an engine, or of several that count together. Times are in seconds.

    Args:
        max_batch: rows that fit a step of one of them, which batch occupancy is measured by.
        num_pages: pages of one's cache, all groups together.
        page_size: positions of a page, 0 where nobody says.
    """

    def __init__(self, *, max_batch: int, num_pages: int, page_size: int = 0) -> None:
        self._lock = Lock()
        """Of whoever writes: `x += 1` may otherwise lose another thread's."""
        self.max_batch = max_batch
        self.num_pages = num_pages
        self.page_size = page_size
        self.requests = 0
        self.outcomes: dict[str, int] = {}
        """Requests that ended, by finish reason."""
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.prefix_queries = 0
        self.prefix_query_tokens = 0
        self.prefix_hit_tokens = 0
        self.preemptions = 0
        self.compiles = 0
        self.unexpected_compiles = 0
        self.waiting = 0
        self.running = 0
        self.pages_used = 0
        """Pages that sequences hold."""
        self.pages_cached = 0
        """Pages that only the prefix cache holds: whoever needs one gets it."""
        self._parts: dict[int, tuple[int, int, int, int]] = {}
        self.peak_waiting = 0
        self.peak_running = 0
        self.peak_pages_used = 0
        self.prefill = Phase()
        self.decode = Phase()
        self.queue_time = Histogram(QUEUE_BOUNDS)
        """From arrival to the first slot."""
        self.ttft = Histogram(TTFT_BOUNDS)
        """From arrival to the first token."""
        self.ttft_of: dict[str, Histogram] = {}
        """The same, apart for each kind of request: those of Request, and "chat"."""
        self.inter_token = Histogram(LATENCY_BOUNDS)
        """From one token of a sequence to its next, as its reader sees them."""
        self.request_time = Histogram(REQUEST_BOUNDS)
        """From arrival to the last token."""
        self.durations: dict[tuple[str, str], Histogram] = {}
        """The same, apart for each kind and name of the error that ended it ("" for none)."""
        self.prefill_time = Histogram(REQUEST_BOUNDS)
        """From a request's first slot to its first token."""
        self.decode_time = Histogram(REQUEST_BOUNDS)
        """From a request's first token to its last."""
        self.run_time = Histogram(REQUEST_BOUNDS)
        """From a request's first slot to its last token."""
        self.token_time = Histogram(LATENCY_BOUNDS)
        """Mean time from one token of an answer to its next, an answer of two tokens or more counting once."""
        self.token_time_of: dict[str, Histogram] = {}
        """The same, apart for each kind."""
        self.prompt_sizes = Histogram(TOKEN_BOUNDS)
        """Tokens of a request's prompt."""
        self.answer_sizes = Histogram(TOKEN_BOUNDS)
        """Tokens generated for a request, all its answers together."""
        self.step_tokens = Histogram(STEP_TOKEN_BOUNDS)
        """Tokens computed in a step."""
        self.step_host = Histogram(STEP_BOUNDS)
        """Scheduling, preparing and post-processing of a step, which the device may hide."""
        self.step_device = Histogram(STEP_BOUNDS)
        """From the later of a step's dispatch and the last step's end to its end."""
        self.experts: ExpertLoad | None = None
        """Of a mixture, where the engine was asked to count it."""
        self.step_wait = Histogram(STEP_BOUNDS)
        """What the host stood still for the device."""

    def submitted(self, prompt_tokens: int) -> None:
        """A request came in."""
        with self._lock:
            self.requests += 1
            self.prompt_tokens += prompt_tokens
            self.prompt_sizes.add(prompt_tokens)

    def admitted(self, queue_seconds: float) -> None:
        """A sequence got its first slot."""
        with self._lock:
            self.queue_time.add(queue_seconds)

    def looked_up(self, tokens: int, cached_tokens: int) -> None:
        """The prefix cache was asked for a prompt of `tokens` and held `cached_tokens` of them."""
        with self._lock:
            self.prefix_queries += 1
            self.prefix_query_tokens += tokens
            self.prefix_hit_tokens += cached_tokens

    def first_token(self, seconds: float, kind: str = "generate") -> None:
        """A sequence's first token reached its stream, `seconds` after it arrived."""
        with self._lock:
            self.output_tokens += 1
            self.ttft.add(seconds)
            _of(self.ttft_of, kind, TTFT_BOUNDS).add(seconds)

    def next_token(self, seconds: float) -> None:
        """A token of a sequence reached its stream, `seconds` after the one before it."""
        with self._lock:
            self.output_tokens += 1
            self.inter_token.add(seconds)

    def answered(self, seconds: float, count: int, kind: str = "generate") -> None:
        """An answer of `count` tokens is complete, `seconds` after its first one."""
        if count > 1:
            with self._lock:
                self.token_time.add(seconds / (count - 1))
                _of(self.token_time_of, kind, LATENCY_BOUNDS).add(seconds / (count - 1))

    def finished(self, reason: str, seconds: float, *, kind: str = "generate", error: str = "") -> None:
        """A request ended: its finish reason ("error" for a failure), how long after it arrived, and which error."""
        with self._lock:
            self.outcomes[reason] = self.outcomes.get(reason, 0) + 1
            self.request_time.add(seconds)
            _of(self.durations, (kind, error), REQUEST_BOUNDS).add(seconds)

    def ran_for(self, prefill: float, decode: float, tokens: int) -> None:
        """A request that had a slot and at least one token ended: the seconds of its parts, the tokens generated."""
        with self._lock:
            self.prefill_time.add(prefill)
            self.decode_time.add(decode)
            self.run_time.add(prefill + decode)
            self.answer_sizes.add(tokens)

    def preempted(self, count: int = 1) -> None:
        """Sequences lost their pages and will be computed again."""
        with self._lock:
            self.preemptions += count

    def compiled(self, *, unexpected: bool = False) -> None:
        """A program was compiled; `unexpected` after warm-up was done."""
        with self._lock:
            self.compiles += 1
            self.unexpected_compiles += unexpected

    def ran(self, plan: Plan, *, host: float, device: float, wait: float) -> None:
        """The results of a plan were read back; the times are those of step_host, step_device and step_wait."""
        steps = plan.num_steps
        prompt_tokens = attended = read = drawn = 0
        for sequence, start, count, draws in plan.rows:
            if start < sequence.prompt_len:
                prompt_tokens += count
            read += start + count
            attended += count * start + count * (count + 1) // 2
            drawn += draws
        with self._lock:
            phase = self.prefill if prompt_tokens else self.decode
            phase.calls += 1
            phase.steps += steps
            phase.seconds += device
            phase.rows += len(plan.rows) * steps
            phase.tokens += plan.num_tokens
            phase.bucket_tokens += plan.bucket.num_tokens * steps
            phase.prompt_tokens += prompt_tokens
            phase.drawn += drawn * steps
            # Each further step of a call finds every row one position longer.
            longer = len(plan.rows) * steps * (steps - 1) // 2
            phase.read += read * steps + longer
            phase.attended += attended * steps + longer
            self.step_tokens.add(plan.num_tokens / steps, steps)
            self.step_host.add(host)
            self.step_device.add(device)
            self.step_wait.add(wait)

    def chose_experts(self, load: np.ndarray) -> None:
        """What Ticket.expert_load says of a step."""
        with self._lock:
            if self.experts is None:
                self.experts = ExpertLoad(*load.shape)
            self.experts.add(load)

    def levels(self, *, waiting: int, running: int, pages_used: int, pages_cached: int = 0, part: int = 0) -> None:
        """Where things stand, after every change of a step and when the engine falls idle.

        Args:
            part: which of several engines that count here together; their levels are added.
        """
        with self._lock:
            self._parts[part] = (waiting, running, pages_used, pages_cached)
            if len(self._parts) > 1:
                waiting, running, pages_used, pages_cached = map(sum, zip(*self._parts.values(), strict=True))
            self.waiting, self.running, self.pages_used, self.pages_cached = waiting, running, pages_used, pages_cached
            if waiting > self.peak_waiting:
                self.peak_waiting = waiting
            if running > self.peak_running:
                self.peak_running = running
            if pages_used > self.peak_pages_used:
                self.peak_pages_used = pages_used

    def snapshot(self) -> dict[str, Any]:
        """Everything, as JSON knows it; histograms and phases are objects of their own."""
        kinds = Histogram | Phase | ExpertLoad
        plain = {name: value for name, value in vars(self).items() if not isinstance(value, kinds | dict)}
        values = {name: value for name, value in plain.items() if name[0] != "_"}
        values["outcomes"] = self.outcomes.copy()
        parts = {name: value.snapshot() for name, value in vars(self).items() if isinstance(value, kinds)}
        return {**values, **parts, **shares(values, parts["prefill"], parts["decode"])}


def _of[Key](histograms: dict[Key, Histogram], key: Key, bounds: Sequence[float]) -> Histogram:
    """The histogram of a key, a new one where there is none."""
    if key not in histograms:
        histograms[key] = Histogram(bounds)
    return histograms[key]


def shares(values: Mapping[str, Any], prefill: Mapping[str, float], decode: Mapping[str, float]) -> dict[str, float]:
    """What the counters of a snapshot, or the differences of two, say in relation to each other.

    Returns:
        batch_occupancy (rows of the most that fit), padding_waste (tokens computed for nothing) and prefix_hit_rate
        (of the prompt tokens looked up), each from 0 to 1.
    """

    def both(name: str) -> float:
        return prefill[name] + decode[name]

    steps, tokens, queried = both("steps"), both("bucket_tokens"), values["prefix_query_tokens"]
    return {
        "batch_occupancy": both("rows") / (steps * values["max_batch"]) if steps else 0.0,
        "padding_waste": 1 - both("tokens") / tokens if tokens else 0.0,
        "prefix_hit_rate": values["prefix_hit_tokens"] / queried if queried else 0.0,
    }
