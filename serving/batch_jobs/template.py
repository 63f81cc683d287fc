"""Prompts out of columns: "Translate {text} into {language}"."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ...backends.errors import InvalidParameterError
from .errors import LineError

_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class Template:
    """A text with {column} in it; {{ and }} stand for braces.

    Raises:
        InvalidParameterError: a brace stands alone, or names nothing.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        for part in _PART.finditer(text):
            if part[0] in "{}" or part[1] == "":
                raise InvalidParameterError("--template", text, "{column} for a column, {{ and }} for braces")
        self.columns = tuple(dict.fromkeys(part[1] for part in _PART.finditer(text) if part[1]))

    def check(self, columns: Iterable[str], where: str) -> None:
        """Refuses a file that lacks one of the columns."""
        held = list(columns)
        for column in self.columns:
            if column not in held:
                raise InvalidParameterError("--template", self.text, f"columns of {where}, which has {', '.join(held)}")

    def fill(self, row: Mapping[str, Any]) -> str:
        """The text with the values of a row in it.

        Raises:
            LineError: a column that the row needs is empty.
        """

        def value(part: re.Match[str]) -> str:
            if not part[1]:
                return part[0][0]
            found = row.get(part[1])
            if found is None:
                raise LineError("empty_column", f"column {part[1]!r} is empty, and the template needs it")
            return str(found)

        return _PART.sub(value, self.text)
