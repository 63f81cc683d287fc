"""Slow tests do not begin after their time; the others run whatever the time, and first."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

TESTS = """
import pytest

@pytest.mark.slow
def test_that_takes_long() -> None: ...

def test_that_takes_no_time() -> None: ...
"""


@pytest.mark.parametrize(
    ("left", "told"),
    [(None, "2 passed"), (3600, "2 passed"), (-1, "1 passed, 1 skipped")],
    ids=["ever", "hour", "over"],
)
def test_what_runs(left: int | None, told: str, tmp_path: Path) -> None:
    for name in ("conftest.py", "test_some.py"):
        (tmp_path / name).write_text("from tests.slow_until import *" if name == "conftest.py" else TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "DISTAFF_"))}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    if left is not None:
        environment["DISTAFF_SLOW_UNTIL"] = str(time.time() + left)
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "."]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and f" {told} in " in done.stdout, done.stdout + done.stderr
    ran = [line.split("::")[1].split()[0] for line in done.stdout.splitlines() if "::" in line]
    in_order = ["test_that_takes_long", "test_that_takes_no_time"]
    assert ran == (in_order if left is None else in_order[::-1])
