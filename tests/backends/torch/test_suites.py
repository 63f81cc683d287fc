"""Suites of others on torch:cpu: those tests of the API, the server and batch jobs that are marked any_backend."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("suite", "least"),
    [
        pytest.param("tests/serving/test_llm.py", 15, marks=pytest.mark.slow),
        pytest.param("tests/serving/test_parameters.py", 30, marks=pytest.mark.slow),
        ("tests/scripts/test_serve.py", 1),
        ("tests/serving/batch_jobs/test_smollm2.py", 1),
    ],
)
def test_it_passes_on_torch(suite: str, least: int) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "any_backend and not soak", suite]
    ours = ("PYTEST_", "DISTAFF_SLOW_UNTIL")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        command, cwd=ROOT, env={**environment, "DISTAFF_TEST_BACKEND": "torch:cpu"}, capture_output=True, text=True
    )
    told = done.stdout.splitlines()[-1] if done.stdout else ""
    print(suite, told)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(told.split(" passed")[0].split()[-1]) >= least, told
