"""Files that clients have sent, or that batches have made, in a folder that survives the server."""

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...backends.errors import UsageError
from .local_store import write_whole

_SENT = re.compile("file-[0-9a-f]{24}")
"""Ids of files that clients send."""


class NoSuchError(UsageError):
    """There is no file or batch of that name."""


@dataclass(frozen=True)
class StoredFile:
    """What is known of a file.

    Attributes:
        bytes: its size.
        created_at: seconds since 1970.
        purpose: "batch" of inputs, "batch_output" of answers.
        tenant: whose it is; others do not see it.
    """

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    tenant: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        told = {name: value for name, value in asdict(self).items() if name != "tenant"}
        return {**told, "object": "file", "status": "processed"}


class FileStore:
    """Files by id: each has its content, and beside it what is known of it, which is written last.

    Args:
        folder: this process' alone; what came of files that were being sent when an earlier one was killed is deleted.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            half_sent = _SENT.fullmatch(path.stem) and not self._meta(path.stem).exists()
            if path.suffix not in (".json", ".content") or half_sent:
                path.unlink()

    def new_path(self) -> tuple[str, Path]:
        """An id, and where its content goes before `add`."""
        id = f"file-{secrets.token_hex(12)}"
        return id, self.path(id)

    def add(self, id: str, filename: str, purpose: str, tenant: str = "") -> StoredFile:
        """Makes a file of the content at `path(id)`."""
        with self.path(id).open("rb") as content:
            os.fsync(content.fileno())
        stored = StoredFile(id, self.path(id).stat().st_size, int(time.time()), filename, purpose, tenant)
        write_json(self._meta(id), asdict(stored))
        return stored

    def adopt(self, source: Path, filename: str, purpose: str, tenant: str, id: str) -> StoredFile:
        """Moves a file in, under an id that files which are sent do not have; done again it goes on where it was, which
        may be the end."""
        if self._meta(id).exists():
            return self.get(id, tenant)
        if source.exists() or not self.path(id).exists():
            shutil.move(source, self.path(id))
        return self.add(id, filename, purpose, tenant)

    def get(self, id: str, tenant: str = "") -> StoredFile:
        """
        Raises:
            NoSuchError: this tenant has none of that id.
        """
        try:
            stored = StoredFile(**json.loads(self._meta(id).read_text("utf-8")))
        except (OSError, ValueError):
            stored = None
        if stored is None or stored.tenant != tenant:
            raise NoSuchError(f"there is no file {id[:80]!r}")
        return stored

    def all(self, tenant: str = "") -> Iterator[StoredFile]:
        """Every file of a tenant, the newest first."""
        found = [StoredFile(**json.loads(path.read_text("utf-8"))) for path in self._folder.glob("*.json")]
        yield from sorted((each for each in found if each.tenant == tenant), key=lambda each: -each.created_at)

    def delete(self, id: str, tenant: str = "") -> None:
        """Raises NoSuchError as `get`."""
        self.get(id, tenant)
        self._meta(id).unlink()
        self.path(id).unlink(missing_ok=True)

    def path(self, id: str) -> Path:
        """Where the content of a file lies."""
        return self._folder / f"{_plain(id)}.content"

    def _meta(self, id: str) -> Path:
        return self._folder / f"{_plain(id)}.json"


def write_json(path: Path, value: Any) -> None:
    """Writes a file that is whole or not there."""
    write_whole(path, [json.dumps(value).encode()])


def _plain(id: str) -> str:
    if not id.replace("-", "").replace("_", "").isalnum() or len(id) > 80:
        raise NoSuchError(f"there is no file or batch {id[:80]!r}")
    return id
