"""What the journal holds of each line: a checksum, the line's key, and the row as it will be published."""

import json
import zlib
from typing import Any, NamedTuple

NO_LINE = 0
"""Number of records that belong to no line: their `code` says what their row tells, JOB or RUN."""
JOB = "job"
"""Which job the journal belongs to."""
RUN = "run"
"""How long a run has taken so far: the last one of each `run` counts."""


_HEADS = json.JSONEncoder(separators=(",", ":"))


class Record(NamedTuple):
    """One answered line.

    Attributes:
        number, custom_id, digest: of the line; the digest of its body in hexadecimal.
        key: 64 bits of the line's key.
        good: whether the row belongs into the output; otherwise into the errors file.
        code: of the problem, "" where there is none.
        prompt_tokens, completion_tokens: that the answer took.
        row: JSON on one line, without its end.
    """

    number: int
    custom_id: str | None
    digest: str
    key: int
    good: bool
    code: str
    prompt_tokens: int
    completion_tokens: int
    row: bytes

    def to_bytes(self) -> bytes:
        """As it stands in the journal, line end included: checksum, what it is, and the row, between tabs."""
        body = _HEADS.encode(self[:-1]).encode() + b"\t" + self.row
        return b"%08x\t%b\n" % (zlib.crc32(body), body)


def parse_record(line: bytes) -> Record | None:
    """The record in a line of the journal without its end; None if it is not whole."""
    if len(line) < 10 or line[8:9] != b"\t" or b"%08x" % zlib.crc32(line[9:]) != line[:8]:
        return None
    head, _, row = line[9:].partition(b"\t")
    fields: list[Any] = json.loads(head)
    return Record._make([*fields, row])


def note(code: str, value: dict[str, Any]) -> Record:
    """A record that belongs to no line."""
    return Record(NO_LINE, None, "", 0, True, code, 0, 0, json.dumps(value, sort_keys=True).encode())


def row_offset(line: bytes) -> int:
    """Where the row begins in a line of the journal."""
    return line.index(b"\t", 9) + 1
