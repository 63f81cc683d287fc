"""Keeps CI within its time on a machine of any speed: no slow test begins after a moment that `.ci/run` has set.

`DISTAFF_SLOW_UNTIL` is that moment, in seconds since 1970; without it every test runs. Tests that are not slow run in
any case, and before the others. The summary counts what did not run. Which files come first differs from commit to
commit (`DISTAFF_ORDER`), so that no slow test is always the last.
"""

import os
import time
import zlib

import pytest

UNTIL = os.environ.get("DISTAFF_SLOW_UNTIL")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if UNTIL is None:
        return
    order = os.environ.get("DISTAFF_ORDER", "")

    def place(item: pytest.Item) -> tuple[bool, int]:
        return _is_slow(item), zlib.crc32(f"{order} {item.nodeid.partition('::')[0]}".encode())

    items.sort(key=place)  # a file's tests stay together: they share fixtures and compiled programs


def pytest_runtest_setup(item: pytest.Item) -> None:
    if UNTIL is not None and _is_slow(item) and time.time() > float(UNTIL):
        pytest.skip("slow, and the time for slow tests is over on this machine")


def _is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None
