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

_WAITING = 4096
_TICK = 0.5


class Writer:
    """Writes what has been answered. `put` and `refuse` may be called in any thread.

    Args:
        journal: where records go; nobody else appends to it meanwhile.
        answers: what makes rows.

    Attributes:
        error: what ended it, such as a full disk.
    """

    def __init__(self, journal: Journal | Segments, answers: Answers) -> None:
        self._journal = journal
        self._answers = answers
        self._queue: queue.Queue[Callable[[], object] | None] = queue.Queue(_WAITING)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="distaff-batch-writer", daemon=True)
        self._thread.start()

    def put(self, item: Prepared, results: Sequence[Result]) -> None:
        """Takes an answer."""
        self._queue.put(lambda: self._append(item, results))

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

    def _append(self, item: Prepared, results: Sequence[Result]) -> None:
        prompt = sum(result.usage.prompt_tokens for result in results)
        drawn = sum(result.usage.completion_tokens for result in results)
        try:
            row = self._answers.row(item, results)
        except Exception as error:  # one answer that cannot be told ends no job
            problem = LineError("server_error", f"the answer cannot be written: {error}", status=500)
            self._journal.append(_record(item.line, False, problem.code, 0, 0, bad_row(item.line, problem)))
            return
        self._journal.append(_record(item.line, True, "", prompt, drawn, row))

    def _run(self) -> None:
        while True:
            try:
                work = self._queue.get(timeout=_TICK)
            except queue.Empty:
                work = self._journal.tick
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
