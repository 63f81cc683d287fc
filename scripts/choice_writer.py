"""Several answers on one stdout."""

import sys

from .output import TextStream


class ChoiceWriter:
    """Writes answers that are generated at the same time, one below the other; stderr gets a heading for each.

    The first that has not ended is shown as it grows; those behind it wait.
    """

    def __init__(self, num_choices: int) -> None:
        self._stream = TextStream()
        self._waiting = [""] * num_choices
        self._ended = [False] * num_choices
        self._current = -1

    def write(self, choice: int, text: str, *, ended: bool = False) -> None:
        """Take the next text of an answer."""
        if self._current < 0:
            self._begin()
        self._waiting[choice] += text
        self._ended[choice] = ended
        self._show()
        while self._ended[self._current] and self._current < len(self._waiting) - 1:
            self._begin()
            self._show()

    def finish(self) -> None:
        """End the last line, if the text did not."""
        self._stream.finish()

    def _begin(self) -> None:
        if self._current >= 0:
            self._stream.finish()
        self._current += 1
        if len(self._waiting) > 1:
            sys.stderr.write(f"[choice {self._current + 1} of {len(self._waiting)}]\n")
            sys.stderr.flush()

    def _show(self) -> None:
        self._stream.write(self._waiting[self._current])
        self._waiting[self._current] = ""
