"""How far a job has come: a bar on a terminal, elsewhere a line every now and then."""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_BAR_SECONDS, _LOG_SECONDS = 0.5, 10.0


@dataclass(frozen=True)
class Standing:
    """Where a job stands.

    Attributes:
        done, failed, total: lines.
        tokens: read and written in all runs.
        figures: batch_occupancy and prefix_hit_rate of this run.
    """

    done: int
    failed: int
    total: int
    tokens: int
    figures: Mapping[str, Any]


class BatchProgress:
    """Shows where a job stands. Use it as a context manager; `update` costs nothing until it is time again."""

    def __init__(self, standing: Callable[[], Standing], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._standing, self._clock = standing, clock
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._every = _LOG_SECONDS

    def __enter__(self) -> Self:
        first = self._standing()
        self._started = self._shown = self._clock()
        self._first = first
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bars = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bars.add_task("", total=first.total, completed=first.done)
            self._bars.start()
            self._every = _BAR_SECONDS
        else:
            _log(f"{first.total} lines, {first.done} of them done before")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()
        else:
            self._show()

    def update(self) -> None:
        """To be called often."""
        if self._clock() - self._shown >= self._every:
            self._show()

    def _show(self) -> None:
        self._shown = self._clock()
        now = self._standing()
        text = self._text(now)
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=now.done, description=text)
        else:
            _log(f"{now.done}/{now.total} lines ({now.done / max(1, now.total):.0%}), {text}")

    def _text(self, now: Standing) -> str:
        seconds = max(1e-9, self._shown - self._started)
        done = now.done - self._first.done
        parts = [f"{(now.tokens - self._first.tokens) / seconds:.0f} tokens/s"]
        if done:
            parts.append(f"{timedelta(seconds=round((now.total - now.done) * seconds / done))} left")
        if now.failed:
            parts.append(f"{now.failed} failed")
        if now.figures:
            parts.append(f"batch {now.figures['batch_occupancy']:.0%}")
            parts.append(f"prefix hits {now.figures['prefix_hit_rate']:.0%}")
        return ", ".join(parts)


def _log(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()
