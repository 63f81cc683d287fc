"""Which lines are answered, and where their rows lie: eight bytes for each line of the input."""

import json
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Any

from .records import JOB, NO_LINE, Record

_BAD = 1 << 63


class Index:
    """Rows by line number.

    Attributes:
        done: lines that have a row.
        failed: those whose row belongs into the errors file, by code.
        prompt_tokens, completion_tokens: of all rows.
        header: of the job; None where there is none.
        runs: what each run has told of itself, by its name.
    """

    def __init__(self) -> None:
        self._offsets = array("Q")  # one more than the offset; 0 where there is no row
        self.done = 0
        self.failed: Counter[str] = Counter()
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.header: dict[str, Any] | None = None
        self.runs: dict[str, dict[str, Any]] = {}

    def __contains__(self, number: int) -> bool:
        return number <= len(self._offsets) and self._offsets[number - 1] != 0

    def add(self, record: Record, offset: int) -> None:
        """Notes where the journal holds a record. A line that has a row keeps it."""
        number = record.number
        if number == NO_LINE:
            told = json.loads(record.row)
            if record.code == JOB:
                self.header = told
            else:
                self.runs[told["run"]] = told
            return
        if number in self:
            return
        if number > len(self._offsets):
            self._offsets.frombytes(bytes(8 * (number - len(self._offsets))))
        self._offsets[number - 1] = (offset + 1) | (0 if record.good else _BAD)
        self.done += 1
        if not record.good:
            self.failed[record.code] += 1
        self.prompt_tokens += record.prompt_tokens
        self.completion_tokens += record.completion_tokens

    def offsets(self, *, good: bool) -> Iterator[int]:
        """Where the good or the bad records begin, in the order of the input."""
        for entry in self._offsets:
            if entry and bool(entry & _BAD) != good:
                yield (entry & ~_BAD) - 1
