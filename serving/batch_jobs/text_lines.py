"""Lines of a file as bytes, one at a time, however long the file or a line is."""

from collections.abc import Iterator
from typing import Any

from .errors import LineError

MAX_LINE_BYTES = 64 * 2**20
"""Longer lines are refused."""
BOM = b"\xef\xbb\xbf"
"""That a file in UTF-8 may begin with."""


def read_lines(file: Any, offset: int = 0) -> Iterator[tuple[int, bytes | LineError]]:
    """Where each line begins, from the one at a byte offset, and the line without its end (LF or CRLF) and, at the very
    start, without a byte order mark; blank ones are b"". A line that is too long comes out as an error, and is never in
    memory as a whole."""
    if offset:
        file.seek(offset)
    while data := file.readline(MAX_LINE_BYTES + 2):
        size = len(data)
        if size > MAX_LINE_BYTES and not data.endswith(b"\n"):
            while (more := file.readline(2**20)) and not more.endswith(b"\n"):
                size += len(more)
            message = f"the line has more than {size} bytes, expected at most {MAX_LINE_BYTES}"
            yield offset, LineError("line_too_long", message)
            size += len(more)
        else:
            line = data.removesuffix(b"\n").removesuffix(b"\r")
            yield offset, line if offset else line.removeprefix(BOM)
        offset += size
