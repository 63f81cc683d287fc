"""What goes to stdout."""

import json
import sys
import unicodedata
from collections.abc import Mapping
from typing import Any


def print_json(value: Mapping[str, Any]) -> None:
    """Print one object on one line. ASCII only, so that no reader takes a U+2028 in a text for the end of the line."""
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
    sys.stdout.flush()


class TextStream:
    """Generated text on stdout, piece by piece. A terminal is not given control characters, which could command it."""

    def __init__(self) -> None:
        self._to_terminal = sys.stdout.isatty()
        self._last = "\n"
        reconfigure = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")  # a locale that lacks a character gets a question mark

    def write(self, text: str) -> None:
        """Show `text` at once."""
        if not text:
            return
        sys.stdout.write("".join(map(_harmless, text)) if self._to_terminal else text)
        sys.stdout.flush()
        self._last = text[-1]

    def finish(self) -> None:
        """End the last line, if the text did not."""
        if self._last != "\n":
            self.write("\n")


def _harmless(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) != "Cc":
        return character
    return "\N{REPLACEMENT CHARACTER}"


def size_text(num_bytes: int) -> str:
    """Bytes as people say them: "92.9 MB"."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
