"""Which model answers, as far as answers depend on it, and where it runs."""

import hashlib
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...models.checkpoints import fingerprint
from .loaded import Loaded

_PACKAGES = ("distaff", "jax", "jaxlib", "libtpu")


def model_identity(llm: Loaded, name: str, *, dtype: str) -> dict[str, Any]:
    """What must be the same in every run of a job."""
    config = llm.engine.config
    return {
        "name": Path(name).name,
        "family": llm.config.family,
        "weights": fingerprint(llm.path),
        "config": hashlib.sha256(repr(llm.config).encode()).hexdigest()[:16],
        "dtype": dtype,
        "context": config.context,
        "deterministic": config.deterministic,
    }


def place(llm: Loaded, layout: str | None) -> dict[str, Any]:
    """What may differ between runs: with `deterministic`, answers may differ in the last bits of numbers then."""
    return {"backend": llm.backend.name, "layout": layout, "versions": versions()}


def versions() -> dict[str, str]:
    """Of what computes."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
