"""Outputs behind a URL: segments while the job runs; output and errors at its end, and the manifest as the last one."""

import contextlib
import json
from collections.abc import Callable, Iterable
from typing import Any

from .lease import LEASE_SECONDS
from .records import Record
from .segments import SEGMENT_SECONDS, Segments
from .source import filesystem


class ObjectStore:
    """Output, errors, manifest and segments of a job on an object store, which has neither append nor rename.

    Args:
        url: of the output.
        lease_seconds, segment_seconds: as LEASE_SECONDS and SEGMENT_SECONDS.
    """

    def __init__(
        self, url: str, *, lease_seconds: float = LEASE_SECONDS, segment_seconds: float = SEGMENT_SECONDS
    ) -> None:
        self.url = url
        self._fs, self.output = filesystem(url)
        self.errors = f"{self.output}.errors.jsonl"
        self.manifest = f"{self.output}.manifest.json"
        self.journal = f"{self.output}.journal"
        self._seconds = {"lease_seconds": lease_seconds, "segment_seconds": segment_seconds}

    def __str__(self) -> str:
        return self.url

    def found(self) -> list[str]:
        """What is there of this or an earlier job."""
        there = self.found_results()
        if self._fs.glob(f"{self.journal}/segment-*"):
            there.append(self.journal.rsplit("/", 1)[-1])
        return there

    def found_results(self) -> list[str]:
        """What is there of what jobs publish."""
        self._fs.invalidate_cache()
        there = [path for path in (self.output, self.errors, self.manifest) if self._fs.exists(path)]
        return [path.rsplit("/", 1)[-1] for path in there]

    def read_manifest(self) -> dict[str, Any] | None:
        """The manifest of a job that came to its end; None where there is none."""
        self._fs.invalidate_cache()
        if not self._fs.exists(self.manifest):
            return None
        value: dict[str, Any] = json.loads(self._fs.cat_file(self.manifest))
        return value

    def open_journal(self, check: Callable[[Record], None]) -> Segments:
        """As Segments."""
        # Some stores have folders, and want them made.
        with contextlib.suppress(OSError, NotImplementedError):
            self._fs.makedirs(self.journal, exist_ok=True)
        return Segments(self._fs, self.journal, check, **self._seconds)

    def forget_results(self) -> None:
        """Deletes what an earlier job has published."""
        for path in (self.manifest, self.output, self.errors):
            if self._fs.exists(path):
                self._fs.rm_file(path)

    def forget(self) -> None:
        """Deletes these and the segments."""
        self.forget_results()
        if self._fs.exists(self.journal):
            self._fs.rm(self.journal, recursive=True)

    def publish(self, good: Iterable[bytes], bad: Iterable[bytes], manifest: dict[str, Any]) -> None:
        """Writes errors, output and manifest in this order: whoever sees the manifest sees the others whole."""
        text = json.dumps(manifest, indent=2) + "\n"
        for path, rows in ((self.errors, bad), (self.output, good), (self.manifest, [text.encode()])):
            with self._fs.open(path, "wb") as file:
                for row in rows:
                    file.write(row)

    def read_rows(self) -> tuple[Iterable[bytes], Iterable[bytes]]:
        """Good and bad rows of a job that came to its end."""
        return self._lines(self.output), self._lines(self.errors)

    def _lines(self, path: str) -> Iterable[bytes]:
        with self._fs.open(path, "rb") as file:
            yield from file
