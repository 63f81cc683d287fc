"""Lines of a file as bytes, one at a time, however long the file or a line is."""

from collections.abc import Iterator
from typing import Any

from .errors import LineError

MAX_LINE_BYTES = 64 * 2**20
"""Longer lines are refused."""
_BOM = b"\xef\xbb\xbf"


def read_lines(file: Any) -> Iterator[bytes | LineError]:
    """Every line without its end (LF or CRLF) and, at the very start, without a byte order mark; blank ones are b"".
    A line that is too long comes out as an error, and is never in memory as a whole."""
    first = True
    while data := file.readline(MAX_LINE_BYTES + 2):
        ended = data.endswith(b"\n")
        if not ended and len(data) > MAX_LINE_BYTES:
            size = len(data)
            while (more := file.readline(2**20)) and not more.endswith(b"\n"):
                size += len(more)
            yield LineError("line_too_long", f"the line has more than {size} bytes, expected at most {MAX_LINE_BYTES}")
        else:
            line = data[:-1] if ended else data
            line = line.removesuffix(b"\r")
            yield line.removeprefix(_BOM) if first else line
        first = False
