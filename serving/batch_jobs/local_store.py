"""Outputs on a disk: a journal while the job runs, renames at its end."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .errors import OutputError
from .journal import Journal, sync_folder
from .records import Record


class LocalStore:
    """Output, errors, manifest and journal of a job, in one folder.

    Args:
        output: the file that the answers go to.

    Raises:
        OutputError: its folder is not there, or cannot be written.
    """

    def __init__(self, output: Path) -> None:
        if output.is_dir() or not output.name:
            raise OutputError(f"{output}: cannot be written, since it is a folder; name a file")
        self.output = output
        self.errors = output.with_name(f"{output.name}.errors.jsonl")
        self.manifest = output.with_name(f"{output.name}.manifest.json")
        self.journal = output.with_name(f"{output.name}.journal")
        folder = output.parent
        if not folder.is_dir():
            raise OutputError(f"{output}: there is no folder {folder}; make it first")
        if not os.access(folder, os.W_OK):
            raise OutputError(f"{output}: cannot be written; name a file in a folder that may be written")

    def __str__(self) -> str:
        return str(self.output)

    def found(self) -> list[str]:
        """What is there of this or an earlier job."""
        return [*self.found_results(), *([self.journal.name] if self.journal.exists() else [])]

    def found_results(self) -> list[str]:
        """What is there of what jobs publish."""
        return [path.name for path in (self.output, self.errors, self.manifest) if path.exists()]

    def read_manifest(self) -> dict[str, Any] | None:
        """The manifest of a job that came to its end; None where there is none."""
        if not self.manifest.exists():
            return None
        value: dict[str, Any] = json.loads(self.manifest.read_text("utf-8"))
        return value

    def open_journal(self, check: Callable[[Record], None]) -> Journal:
        """As Journal."""
        return Journal(self.journal, check)

    def forget_results(self) -> None:
        """Deletes what an earlier job has published."""
        for path in (self.manifest, self.output, self.errors):
            path.unlink(missing_ok=True)

    def forget(self) -> None:
        """Deletes these and the journal."""
        self.forget_results()
        self.journal.unlink(missing_ok=True)

    def publish(self, good: Iterable[bytes], bad: Iterable[bytes], manifest: dict[str, Any]) -> None:
        """Writes output and errors under other names, and renames them when they are on the disk; the manifest last."""
        text = json.dumps(manifest, indent=2) + "\n"
        for path, rows in ((self.errors, bad), (self.output, good), (self.manifest, [text.encode()])):
            write_whole(path, rows)

    def read_rows(self) -> tuple[Iterable[bytes], Iterable[bytes]]:
        """Good and bad rows of a job that came to its end."""
        return _lines(self.output), _lines(self.errors)


def _lines(path: Path) -> Iterable[bytes]:
    with path.open("rb") as file:
        yield from file


def write_whole(path: Path, parts: Iterable[bytes]) -> None:
    """Writes a file that is whole and on the disk, or not there."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb", buffering=2**20) as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
