"""A thread that makes rows of answers and puts them into the journal, beside the engine."""

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from ..generation import Result
from .answers import Answers, bad_row
from .errors import LineError
from .journal import Journal
from .line import Line
from .prepare import Prepared
from .records import RUN, Record, note
from .segments import Segments

type Answered = tuple[Prepared, Sequence[Result]]
"""A line, and what its requests came to."""

_WAITING_TOKENS, _LINE_TOKENS = 2**18, 100
"""Of answers that wait: behind so many the engine does. Each line counts as some tokens of its own."""
_TICK = 0.5


class Writer:
    """Writes what has been answered. `put` and `refuse` may be called in any thread.

    Args:
        journal: where records go; nobody else appends to it meanwhile.
        answers: what makes rows.
        stopping: whether the job is about to stop, so that nothing that was answered shall wait for more.

    Attributes:
        error: what ended it, such as a full disk.
    """

    def __init__(
        self, journal: Journal | Segments, answers: Answers, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self._journal, self._answers, self._stopping = journal, answers, stopping
        self._before = journal.index.done
        self._queue: queue.SimpleQueue[tuple[Callable[[], object] | None, int]] = queue.SimpleQueue()
        self._waiting, self._changed = 0, threading.Condition()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="distaff-batch-writer", daemon=True)
        self._thread.start()

    def put(self, answered: Sequence[Answered]) -> None:
        """Takes answers."""
        tokens = sum(result.usage.total_tokens for _, results in answered for result in results)
        self._add(lambda: self._append(answered), tokens + _LINE_TOKENS * len(answered))

    def refuse(self, line: Line, problem: LineError) -> None:
        """Takes the reason why a line has none."""
        row = bad_row(line, problem)
        self._add(lambda: self._journal.append(_record(line, False, problem.code, 0, 0, row)), _LINE_TOKENS)

    def note(self, run: dict[str, Any]) -> None:
        """Takes what a run has to tell of itself; how many lines it has written is added when all before it are."""

        def append() -> None:
            self._journal.append(note(RUN, {**run, "lines": self._journal.index.done - self._before}))

        self._add(append, _LINE_TOKENS)

    def close(self) -> None:
        """Waits until all that came is on the disk.

        Raises:
            OSError: it is not.
        """
        self._add(None, 0)
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _add(self, work: Callable[[], object] | None, tokens: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting < _WAITING_TOKENS)
            self._waiting += tokens
        self._queue.put((work, tokens))

    def _append(self, answered: Sequence[Answered]) -> None:
        for item, results in answered:
            self._journal.append(self._record_of(item, results))

    def _record_of(self, item: Prepared, results: Sequence[Result]) -> Record:
        prompt = sum(result.usage.prompt_tokens for result in results)
        drawn = sum(result.usage.completion_tokens for result in results)
        try:
            row = self._answers.row(item, results)
        except Exception as error:  # one answer that cannot be told ends no job
            problem = LineError("server_error", f"the answer cannot be written: {error}", status=500)
            return _record(item.line, False, problem.code, 0, 0, bad_row(item.line, problem))
        return _record(item.line, True, "", prompt, drawn, row)

    def _run(self) -> None:
        while True:
            try:
                work, tokens = self._queue.get(timeout=_TICK)
            except queue.Empty:
                work, tokens = (self._journal.sync if self._stopping() else self._journal.tick), 0
            ended = work is None
            if self.error is None:  # otherwise what comes is let go, and computed in the next run
                try:
                    (work or self._journal.sync)()
                except BaseException as error:
                    self.error = error
            with self._changed:
                self._waiting -= tokens
                self._changed.notify_all()
            if ended:
                return


def _record(line: Line, good: bool, code: str, prompt: int, completion: int, row: bytes) -> Record:
    return Record(line.number, line.custom_id, line.digest.hex(), line.short_key, good, code, prompt, completion, row)
