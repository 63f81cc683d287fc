"""What the compiler said before, kept by content: the same sources, versions and arguments have the same report."""

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..backends.compiler.report import CompileReport
from .kernel_rows import KernelRow

_ROOT = Path(__file__).resolve().parent.parent
_VERSIONS = ("jax", "jaxlib", "libtpu")
_ANALYSIS = (
    "aot*.py",
    "compile_*.py",
    "compiler/*.py",
    "hardware.*",
    "kernel_work.py",
    "static_*.py",
)
"""Patterns of what turns a program into a report; bars and budgets judge it afterwards."""


class ReportCache:
    """Reports in a folder, a file each. A file that cannot be read is no report."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, row: KernelRow) -> CompileReport | None:
        """What was kept for a row whose sources have not changed."""
        try:
            return CompileReport.from_dict(json.loads(self._path(row).read_text()))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def put(self, row: KernelRow, report: CompileReport) -> None:
        """Keep a report."""
        path = self._path(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(f".{os.getpid()}")
        written.write_text(json.dumps(report.to_dict()))
        written.replace(path)

    def _path(self, row: KernelRow) -> Path:
        return self._folder / f"{content_key(row)}.json"


def content_key(row: KernelRow) -> str:
    """Hash of all that a row's report depends on."""
    given: Mapping[str, Any] = {
        "builder": row.builder,
        "arguments": row.arguments,
        "topology": row.topology,
        "versions": {name: _version(name) for name in _VERSIONS},
        "sources": _digest(row.kernel if row.kernel == "step" else "ours" if row.ours else "peers"),
    }
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "missing"


@cache
def _digest(kind: str) -> str:
    """Of the kernels' sources and of those of the analysis. A step has the whole model in it."""
    backends = _ROOT / "backends"
    files = [path for pattern in _ANALYSIS for path in backends.glob(pattern)]
    if kind == "peers":
        files += [backends / "tpu" / "peers.py", *_jax_kernels()]
    else:
        files += [path for path in (backends / "tpu").glob("*") if path.is_file() and path.name != "peers.py"]
    if kind == "step":
        models = _ROOT / "models"
        files += [*backends.glob("*.py"), *models.rglob("*.py"), *(models / "configs").glob("*.json")]
    found = hashlib.sha256()
    for path in sorted(set(files)):
        found.update(f"{path.name}\n".encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def _jax_kernels() -> list[Path]:
    """Files of JAX's public kernels, found without importing them."""
    spec = find_spec("jax")
    assert spec is not None and spec.origin is not None
    return list((Path(spec.origin).parent / "experimental" / "pallas" / "ops" / "tpu").rglob("*.py"))
