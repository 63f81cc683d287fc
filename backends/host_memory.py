"""How much memory the host has for this process: what Linux can give, or what is left of a container's limit."""

import os
from collections.abc import Iterator
from pathlib import Path

from .base import MemoryInfo

_GROUPS = Path("sys/fs/cgroup")

_V2 = ("", "memory.max", "memory.current", ("inactive_file", "active_file"))
_V1 = ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))
"""Of each version of control groups: the controller's name, the files of limit and use, and the numbers of memory.stat
that are pages of files, which count as used and are given back when somebody needs them."""


def host_memory(root: Path = Path("/")) -> MemoryInfo:
    """Bytes of the host, and those that programs can still get; `root` is where /proc and /sys lie.

    Memory that holds pages of files is free in this sense (MemAvailable of proc_meminfo(5)): after some hours of work
    a machine has little else. The limits of this process's control groups (cgroups(7)) narrow both numbers.
    """
    lines = {}
    if (meminfo := root / "proc" / "meminfo").is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    if "MemAvailable" in lines:
        available = int(lines["MemAvailable"].split()[0]) * 1024
    else:
        available = page * os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in os.sysconf_names else total
    for limit, used in _limits(root):
        total, available = min(total, limit), min(available, max(limit - used, 0))
    return MemoryInfo(total=total, free=available, shared=True)


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """The limit of each control group that this process is in, and the bytes used there which are not given back."""
    groups = root / "proc" / "self" / "cgroup"
    for line in groups.read_text().splitlines() if groups.is_file() else ():
        _, controllers, path = line.split(":", 2)
        for controller, limit, used, given_back in (_V2, _V1):
            if controller not in controllers.split(","):
                continue
            mount = root / _GROUPS / controller
            # In a container the path may be the host's, of which only the root is seen.
            for folder in (mount / path.lstrip("/"), *(mount / path.lstrip("/")).parents):
                if not folder.is_relative_to(mount):
                    break
                try:
                    most, usage = (folder / limit).read_text().strip(), int((folder / used).read_text())
                    stat = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
                except OSError:
                    continue
                if most != "max":
                    yield int(most), usage - sum(int(stat.get(name, 0)) for name in given_back)
