"""What the host has: of machines whose files are made up, and of this one beside psutil."""

from pathlib import Path

import psutil
import pytest

from distaff.backends.host_memory import host_memory
from distaff.backends.reference import ReferenceBackend

GIB = 2**30


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def machine(root: Path, *, available: int, cgroup: str = "") -> None:
    text = f"MemTotal: {24 * 2**20} kB\nMemFree: 100 kB\nMemAvailable: {available // 1024} kB\nHugePages_Total: 0\n"
    write(root, {"proc/meminfo": text, "proc/self/cgroup": cgroup})


def group(folder: str, limit: int | str, used: int, files: int, version: int) -> dict[str, str]:
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"), 2: ("memory.max", "memory.current", "")}
    most, current, prefix = names[version]
    stat = f"anon 1\n{prefix}inactive_file {files}\n{prefix}active_file 7\n"
    base = f"sys/fs/cgroup/{'memory/' if version == 1 else ''}{folder}"
    return {f"{base}/{most}": f"{limit}\n", f"{base}/{current}": f"{used}\n", f"{base}/memory.stat": stat}


def test_this_machine_is_told_as_psutil_tells_it() -> None:
    found, told = ReferenceBackend().memory(), psutil.virtual_memory()
    assert found.shared and 0 < found.total <= told.total
    assert found.free <= told.available * 1.25  # less in a container with a limit


def test_pages_of_files_count_as_free(tmp_path: Path) -> None:
    machine(tmp_path, available=9 * GIB)
    assert host_memory(tmp_path).free == 9 * GIB


@pytest.mark.parametrize(("version", "line"), [(2, "0::/jobs/one\n"), (1, "9:cpu:/\n4:memory:/jobs/one\n0::/\n")])
def test_the_least_limit_of_the_control_groups_holds(tmp_path: Path, version: int, line: str) -> None:
    machine(tmp_path, available=20 * GIB, cgroup=line)
    unlimited = "max" if version == 2 else 2**63 - 4096
    write(tmp_path, group("jobs/one", unlimited, GIB, 0, version))
    write(tmp_path, group("jobs", 8 * GIB, 6 * GIB, 3 * GIB - 7, version))
    found = host_memory(tmp_path)
    assert (found.total, found.free) == (8 * GIB, 5 * GIB)
    write(tmp_path, group("jobs/one", 2 * GIB, 3 * GIB, 0, version))  # over its limit, which was lowered
    assert (host_memory(tmp_path).total, host_memory(tmp_path).free) == (2 * GIB, 0)


@pytest.mark.parametrize("version", [1, 2])
def test_in_a_container_the_root_of_the_groups_is_its_own(tmp_path: Path, version: int) -> None:
    machine(tmp_path, available=20 * GIB, cgroup="0::/../../host\n" if version == 2 else "4:memory:/docker/0123\n")
    write(tmp_path, group("", 4 * GIB, GIB, 0, version))
    assert host_memory(tmp_path).free == 3 * GIB + 7


def test_a_system_that_has_none_of_these_files_is_asked_itself(tmp_path: Path) -> None:
    found = host_memory(tmp_path)
    assert 0 < found.free <= found.total
