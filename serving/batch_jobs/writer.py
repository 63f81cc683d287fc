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

_WAITING = 64
"""Steps whose answers may wait: behind these the engine does."""
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
        self._queue: queue.Queue[Callable[[], object] | None] = queue.Queue(_WAITING)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="distaff-batch-writer", daemon=True)
        self._thread.start()

    def put(self, answered: Sequence[Answered]) -> None:
        """Takes answers."""
        self._queue.put(lambda: self._append(answered))

    def refuse(self, line: Line, problem: LineError) -> None:
        """Takes the reason why a line has none."""
        self._queue.put(lambda: self._journal.append(_record(line, False, problem.code, 0, 0, bad_row(line, problem))))

    def note(self, run: dict[str, Any]) -> None:
        """Takes what a run has to tell of itself."""
        self._queue.put(lambda: self._journal.append(note(RUN, run)))

    def close(self) -> None:
        """Waits until all that came is on the disk.

        Raises:
            OSError: it is not.
        """
        self._queue.put(None)
        self._thread.join()
        if self.error is not None:
            raise self.error

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
                work = self._queue.get(timeout=_TICK)
            except queue.Empty:
                work = self._journal.sync if self._stopping() else self._journal.tick
            ended = work is None
            if self.error is None:  # otherwise what comes is let go, and computed in the next run
                try:
                    (work or self._journal.sync)()
                except BaseException as error:
                    self.error = error
            if ended:
                return


def _record(line: Line, good: bool, code: str, prompt: int, completion: int, row: bytes) -> Record:
    return Record(line.number, line.custom_id, line.digest.hex(), line.short_key, good, code, prompt, completion, row)
