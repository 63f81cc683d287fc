"""What `distaff doctor` looks at. A check never raises: what goes wrong is its finding."""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from .output import size_text
from .startup import has_gpu, has_tpu

REINSTALL = "install Distaff again, into a new environment (docs/install.md)"


class Status(StrEnum):
    """How a finding is to be taken."""

    OK = "ok"
    NOTE = "note"
    WRONG = "WRONG"


@dataclass(frozen=True)
class Finding:
    """One line of the report. `remedy` says what to do; `facts` is for machines."""

    name: str
    status: Status
    found: str
    remedy: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "name": self.name,
            "status": self.status.value.lower(),
            "found": self.found,
            "remedy": self.remedy,
            **({"facts": self.facts} if self.facts else {}),
        }


def run_checks(*, network: bool = False) -> list[Finding]:
    """Look at everything, the cheapest first."""
    checks: list[Callable[[], Iterator[Finding]]] = [_python, _packages, _extras, _devices, _memory, _caches]
    if network:
        checks.append(_hub)
    findings: list[Finding] = []
    for check in checks:
        try:
            findings += check()
        except Exception as error:
            name = check.__name__.strip("_")
            findings.append(Finding(name, Status.WRONG, f"{type(error).__name__}: {error}", REINSTALL))
    return findings


def _python() -> Iterator[Finding]:
    number = platform.python_version()
    found = f"{platform.python_implementation()} {number} on {platform.platform()}"
    yield Finding("python", Status.OK, found, facts={"version": number, "executable": sys.executable})
    yield Finding("distaff", Status.OK, version("distaff"), facts={"version": version("distaff")})


def _packages() -> Iterator[Finding]:
    """Every dependency, in a version that the package accepts."""
    for line in requires("distaff") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Finding(requirement.name, Status.WRONG, "not installed", f'pip install "{requirement}"')
            continue
        if requirement.specifier.contains(found, prereleases=True):
            yield Finding(requirement.name, Status.OK, found, facts={"version": found})
        else:
            yield Finding(
                requirement.name,
                Status.WRONG,
                f"{found}, expected {requirement.specifier}",
                f'pip install "{requirement}"',
            )


def _extras() -> Iterator[Finding]:
    """Is what the hardware needs there?"""
    for extra, package, attached, chip in (
        ("tpu", "libtpu", has_tpu(), "TPU"),
        ("cuda", "jax-cuda12-plugin", Path("/dev/nvidiactl").exists(), "NVIDIA GPU"),
    ):
        try:
            found, there = f"{package} {version(package)}", True
        except PackageNotFoundError:
            found, there = "not installed", False
        wrong = attached and not there
        yield Finding(
            f"extra {extra}",
            Status.WRONG if wrong else Status.OK if there else Status.NOTE,
            f"{found}{'' if attached else f' (no {chip} is attached)'}",
            f"install Distaff with its extra `{extra}` (docs/install.md)" if wrong else "",
        )


def _devices() -> Iterator[Finding]:
    import jax

    from ..backends.select import select_backend

    platforms = os.environ.get("JAX_PLATFORMS", "")
    for device in jax.devices():
        stats = device.memory_stats() or {}
        limit = stats.get("bytes_limit")
        memory = f", {size_text(limit)} of memory" if limit else ""
        facts = {"platform": device.platform, "kind": device.device_kind, "bytes_limit": limit}
        yield Finding(
            f"device {device.id}", Status.OK, f"{device.platform} ({device.device_kind}){memory}", facts=facts
        )
    if jax.default_backend() == "cpu" and (has_tpu() or has_gpu()):
        yield Finding(
            "accelerator",
            Status.WRONG,
            "one is attached, but JAX uses the CPU",
            f"unset JAX_PLATFORMS (it is {platforms!r})"
            if platforms == "cpu"
            else "install the extra for it (see above)",
        )
    yield Finding("backend", Status.OK, select_backend().name)


def _memory() -> Iterator[Finding]:
    from ..backends.host_memory import host_memory

    memory = host_memory()
    total, available = memory.total, memory.free
    facts = {"total": total, "available": available, "cpus": os.cpu_count()}
    found = f"{size_text(available)} available of {size_text(total)}, {os.cpu_count()} CPUs"
    short = available < 2 * 10**9
    remedy = "close other programs; the smallest model needs about 2 GB while it loads" if short else ""
    yield Finding("memory", Status.NOTE if short else Status.OK, found, remedy, facts)


def _caches() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from ..backends.compile_cache import compile_cache_dir
    from ..models.checkpoints import cache_dir

    yield _cache("model cache", cache_dir(), "DISTAFF_CACHE")
    yield _cache("hub cache", Path(HF_HUB_CACHE), "HF_HOME")
    compiled = compile_cache_dir(cache_dir() / "jax")
    if compiled is not None:
        yield _cache("compilation cache", compiled, "JAX_COMPILATION_CACHE_DIR")
    else:
        remedy = "unset JAX_COMPILATION_CACHE_DIR, and later starts compile less"
        yield Finding("compilation cache", Status.NOTE, "off: JAX_COMPILATION_CACHE_DIR is empty", remedy)


def _cache(name: str, folder: Path, variable: str) -> Finding:
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    used = sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir()) if folder.is_dir() else 0
    free = shutil.disk_usage(there).free
    facts = {"path": str(folder), "bytes": used, "free": free}
    found = f"{folder} ({size_text(used)} used, {size_text(free)} free)"
    if not there.is_dir() or not os.access(there, os.W_OK):
        remedy = f"make {there} a writable folder, or set {variable} to one"
        return Finding(name, Status.WRONG, f"{found}, not writable", remedy, facts)
    return Finding(name, Status.OK, found, facts=facts)


def _hub() -> Iterator[Finding]:
    import urllib.error
    import urllib.request

    from huggingface_hub.constants import ENDPOINT

    from ..models.checkpoints import is_offline

    token = "set" if os.environ.get("HF_TOKEN") else "not set"
    if is_offline():
        yield Finding("hub", Status.NOTE, f"not asked: HF_HUB_OFFLINE is set (HF_TOKEN is {token})")
        return
    try:
        with urllib.request.urlopen(urllib.request.Request(ENDPOINT, method="HEAD"), timeout=10) as answer:
            status = answer.status
    except urllib.error.HTTPError as error:
        status = error.code
    except (OSError, ValueError) as error:
        remedy = "check the network, the proxy or HF_ENDPOINT; cached models and folders work without it"
        yield Finding("hub", Status.WRONG, f"{ENDPOINT} does not answer ({error})", remedy)
        return
    yield Finding("hub", Status.OK, f"{ENDPOINT} answers ({status}; HF_TOKEN is {token})")
