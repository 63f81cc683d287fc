"""Memory stays flat: a million trivial lines take little more than ten thousand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .instant import write_input

ROOT = Path(__file__).resolve().parents[3]
MAX_MB = 400.0


@pytest.mark.parametrize(
    "lines", [pytest.param(20_000, marks=pytest.mark.slow), pytest.param(1_000_000, marks=pytest.mark.soak)]
)
def test_memory_stays_flat(tmp_path: Path, lines: int) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write_input(source, lines)
    command = [sys.executable, "-m", "tests.serving.batch_jobs.instant", str(source), str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    print(told)
    assert told["lines"] == lines and told["peak_mb"] < MAX_MB
    count = 0
    with output.open("rb") as file:
        for line in file:
            assert line.startswith(b'{"id":"batch_req_') and b'"custom_id":"id-%d"' % count in line
            count += 1
    assert count == lines
