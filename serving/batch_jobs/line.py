"""One request of the input, and the names that derive from it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from .errors import LineError

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")


# Made once: json.dumps with options makes one for each line.
_SORTED = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


class Ids(StrEnum):
    """What becomes of a line without custom_id, or with one that an earlier line has."""

    FAIL = "fail"
    SUFFIX = "suffix"


@dataclass(frozen=True)
class Line:
    """A line that holds something.

    Attributes:
        number: its place in the whole input, from 1, lines without anything counted; the key of the journal.
        where: file and line in it, for messages.
        custom_id: the caller's name for it, None where a bad line has none.
        url: which of URLS.
        body: of the request; empty in a bad line.
        digest: SHA-256 of the body, or of the bytes of a line that has none.
        problem: why it cannot be answered, if so.
        key: 32 bytes that differ for lines that differ in place, name, url or body; made of these if empty, and kept
            where a name is changed later.
    """

    number: int
    where: str
    custom_id: str | None
    url: str
    body: Mapping[str, Any]
    digest: bytes
    problem: LineError | None = None
    key: bytes = b""

    def __post_init__(self) -> None:
        if not self.key:
            text = f"{self.number}\0{self.custom_id}\0{self.url}\0".encode("utf-8", "surrogatepass")
            object.__setattr__(self, "key", hashlib.sha256(text + self.digest).digest())

    @property
    def short_key(self) -> int:
        """64 bits of the key, never 0."""
        return int.from_bytes(self.key[:8], "little") or 1

    @property
    def id(self) -> str:
        """A name that is the same in every run."""
        return self.key.hex()[:24]

    def seed(self, job_seed: int) -> int:
        """64 bits to draw with where the body names no seed; the same in every run."""
        return int.from_bytes(hashlib.sha256(self.key + job_seed.to_bytes(8, "little")).digest()[:8], "little")


def digest_of(body: Mapping[str, Any]) -> bytes:
    """SHA-256 of a body, in whatever order its fields stand."""
    return hashlib.sha256(_SORTED.encode(body).encode()).digest()
