"""Loads the TPU compiler so that it tells what it does, and reads what it tells.

libtpu prints the schedules of kernels where LIBTPU_INIT_ARGS asks for it, and reads that once, when it is loaded; so
there is one folder for a process, emptied before each compile.
"""

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from .bundles import Schedule, parse_schedule
from .errors import CompilerNotFoundError

_ENVIRONMENT = {
    # Without these libtpu asks the cloud's metadata server for a machine, complains that there is none, and refuses a
    # second process its lock.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v6e-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_BUNDLES, _UTILIZATION = "packed-bundles-post-ra", "pre-delay_hlo-static-per-bundle-utilization"
_DUMP = re.compile(rf"(?P<run>\d+)-(?P<kernel>.+)-\d+-(?P<kind>{_BUNDLES}|{_UTILIZATION})\.txt")


def libtpu_version() -> str:
    """Version of the installed libtpu.

    Raises:
        CompilerNotFoundError: it is not installed.
    """
    try:
        return version("libtpu")
    except PackageNotFoundError as error:
        raise CompilerNotFoundError(
            "the TPU compiler is not installed: pip install 'distaff[tpu]' (or the package libtpu)"
        ) from error


def print_only(kernels: str | None) -> dict[str, str]:
    """The environment of a process whose libtpu prints no schedules but those of these kernels.

    Args:
        kernels: a regular expression of their names; None: whatever there is.
    """
    if kernels is None:
        return {}
    asked = os.environ.get("LIBTPU_INIT_ARGS", "")
    return {"LIBTPU_INIT_ARGS": f"{asked} --xla_jf_dump_to_filter=module={kernels}".strip()}


@contextmanager
def libtpu_environment() -> Iterator[None]:
    """The environment in which libtpu is loaded as a compiler; what was there before comes back behind it, so that a
    TPU that is attached can still be found."""
    libtpu_version()
    folder = schedule_folder()
    wanted = dict(_ENVIRONMENT)
    if folder is not None:
        asked = os.environ.get("LIBTPU_INIT_ARGS", "")
        wanted["LIBTPU_INIT_ARGS"] = (
            f"{asked} --xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true "
            f"--xla_jf_dump_llo_pass_label_regex=.*({_BUNDLES}|{_UTILIZATION}).*"
        ).strip()
    before = {name: os.environ.get(name) for name in wanted}
    for name, value in wanted.items():
        if before[name] is None or name == "LIBTPU_INIT_ARGS":
            os.environ[name] = value
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@cache
def schedule_folder() -> Path | None:
    """Where this process's libtpu writes schedules; None if somebody else loaded it, without asking for any."""
    spec = find_spec("libtpu")
    maps = Path("/proc/self/maps")
    if spec is None or (maps.exists() and "/libtpu.so" in maps.read_text()):
        return None
    folder = Path(tempfile.mkdtemp(prefix="distaff-libtpu-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def clear_schedules() -> None:
    """Forgets what earlier compiles printed."""
    folder = schedule_folder()
    for path in folder.iterdir() if folder is not None else ():
        path.unlink(missing_ok=True)


def read_schedules(kernels: Container[str]) -> Mapping[str, Schedule]:
    """The schedules of these kernels, by the names of their HLO instructions: those printed since clear_schedules."""
    folder = schedule_folder()
    dumps: dict[tuple[str, str], dict[str, Path]] = {}
    for path in sorted(folder.iterdir()) if folder is not None else ():
        named = _DUMP.fullmatch(path.name)
        if named and named["kernel"] in kernels:  # XLA's own operations print theirs too
            dumps.setdefault((named["run"], named["kernel"]), {})[named["kind"]] = path
    return {
        kernel: parse_schedule(paths[_BUNDLES].read_text(), paths[_UTILIZATION].read_text())
        for (_, kernel), paths in dumps.items()
        if len(paths) == 2
    }
