"""A local Ray cluster of two workers, whose processes are killed at random: every line is answered once."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distaff.serving.batch_jobs.local_store import LocalStore
from distaff.serving.batch_jobs.ray_worker import num_parts

from .conftest import Bench, request_line, write_lines

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / ".venv-ray"
RAY = "ray==2.60.0"
LINES = 300
SHOTS = 3


@pytest.mark.parametrize(
    ("lines", "workers", "parts"), [(0, 2, 1), (10, 2, 1), (1000, 2, 10), (1_000_000, 2, 16), (1_000_000, 100, 800)]
)
def test_parts_are_neither_few_nor_small(lines: int, workers: int, parts: int) -> None:
    assert num_parts(lines, workers, part_lines=100) == parts


@pytest.fixture(scope="module")
def ray_folder() -> Path:
    """A folder that has Ray alone: what it needs is in the environment. Fetched when it is missing."""
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = FOLDER / ".installed"
        if not stamp.exists() or stamp.read_text() != RAY:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            command = [*pip, "--no-compile", "--upgrade", "--target", str(FOLDER), RAY]
            subprocess.run(command, check=True, timeout=600)
            stamp.write_text(RAY)
    return FOLDER


@pytest.mark.slow
def test_actors_that_die_lose_no_line_and_answer_none_twice(ray_folder: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [request_line(index) for index in range(LINES)])
    whole, out = LocalStore(tmp_path / "whole.jsonl"), tmp_path / "out.jsonl"
    Bench().run(source, whole)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ray_folder)]),
        "RAY_AUTH_MODE": "disabled",  # it would leave a token in the home folder
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [sys.executable, "-m", "tests.serving.batch_jobs.ray_cluster", str(source), str(out), str(SHOTS)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    # Ray's own words of workers that died may come behind.
    told = json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))
    print(told)
    assert told["killed"] == SHOTS and told["replaced"] >= 1
    assert out.read_bytes() == whole.output.read_bytes()
    assert told["counts"] == {"total": LINES, "completed": LINES, "failed": 0}
    assert not list(tmp_path.glob("out.jsonl.shard-*"))
