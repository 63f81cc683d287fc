"""What compilers said before, by content: the same sources, versions and arguments have the same answer."""

import hashlib
import json
import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...backends.compile_job import CompileJob
from ...backends.compiler.report import CompileReport

_ROOT = Path(__file__).resolve().parent.parent.parent
_VERSIONS = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin")
_SOURCES = ("backends", "models", "sharding")
_ENDINGS = (".py", ".yaml", ".json", ".txtpb")


class CompileCache:
    """Answers in a folder, a file each: a report, or why there is none. What cannot be read is no answer."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, job: CompileJob) -> CompileReport | dict[str, str] | None:
        """A report; or the kind and the message of a refusal."""
        try:
            read = json.loads(self._path(job).read_text("utf-8"))
            return read["refused"] if "refused" in read else CompileReport.from_dict(read["report"])
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def put(self, job: CompileJob, found: CompileReport | dict[str, str]) -> None:
        """Keeps an answer."""
        path = self._path(job)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept: dict[str, Any] = {"refused": found} if isinstance(found, dict) else {"report": found.to_dict()}
        written = path.with_suffix(f".{os.getpid()}")
        written.write_text(json.dumps(kept), "utf-8")
        written.replace(path)

    def _path(self, job: CompileJob) -> Path:
        return self._folder / f"{content_key(job)}.json"


def content_key(job: CompileJob) -> str:
    """Hash of all that an answer depends on."""
    given = {
        "builder": job.builder,
        "arguments": job.arguments,
        "topology": job.topology,
        "versions": {name: _version(name) for name in _VERSIONS},
        "sources": _digest(),
    }
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "missing"


@cache
def _digest() -> str:
    """Of everything that a step is made of; the sweep itself, commands and serving are not in it."""
    found = hashlib.sha256()
    for folder in _SOURCES:
        for path in sorted((_ROOT / folder).rglob("*")):
            if path.suffix in _ENDINGS and "sweep" not in path.parts and "__pycache__" not in path.parts:
                found.update(f"{path.relative_to(_ROOT)}\n".encode())
                found.update(path.read_bytes())
    return found.hexdigest()
