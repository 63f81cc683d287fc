"""What a user sees on stderr while a model is found, loaded and compiled."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_TITLES = {
    "resolve": "Fetching",
    "load": "Loading",
    "compile": "Compiling",
    "read": "Measuring",
    "round": "Rounding",
    "save": "Writing",
    "train": "Training",
}


class Reported(Protocol):
    """How far a stage has come: `done` of `total`. serving.Progress is one."""

    @property
    def stage(self) -> str: ...
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...


@dataclass(frozen=True)
class Step:
    """A report of our own."""

    stage: str
    done: int
    total: int


class ProgressDisplay:
    """Bars on a terminal; elsewhere (a log file) one line as each stage begins. Use it as a context manager."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._begun: set[str] = set()

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            self._bars = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bars away, before text is written."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._bars is not None:
            self._bars.console.print(text, highlight=False)
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def __call__(self, step: Reported) -> None:
        """Show how far a stage has come."""
        title = f"{_TITLES.get(step.stage, step.stage)} {self._subject}"
        if self._bars is not None:
            if step.stage not in self._tasks:
                for task in self._tasks.values():
                    self._bars.update(task, visible=False)
                self._tasks[step.stage] = self._bars.add_task(title)
            self._bars.update(self._tasks[step.stage], completed=step.done, total=step.total or None)
        elif step.stage not in self._begun and not sys.stderr.isatty():
            self._begun.add(step.stage)
            sys.stderr.write(title + "\n")
            sys.stderr.flush()
