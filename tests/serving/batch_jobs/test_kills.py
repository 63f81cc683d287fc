"""Jobs in processes of their own, ended by signals and full disks; the output is that of an undisturbed run."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distaff.serving.batch_jobs.local_store import LocalStore

from .conftest import Bench, request_line, write_lines

ROOT = Path(__file__).resolve().parents[3]
MANY = 400


def start(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.serving.batch_jobs.victim", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, size: int, process: "subprocess.Popen[str]") -> None:
    """Until a file has grown to `size`, or the process is at its end."""
    while process.poll() is None and not (path.exists() and path.stat().st_size >= size):
        time.sleep(0.005)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("many") / "in.jsonl", [request_line(index) for index in range(MANY)])


@pytest.fixture(scope="module")
def whole(many: Path) -> bytes:
    store = LocalStore(many.parent / "whole.jsonl")
    Bench().run(many, store)
    return store.output.read_bytes()


@pytest.mark.parametrize("kills", [pytest.param(3, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.soak)])
def test_killed_at_random_moments(many: Path, whole: bytes, tmp_path: Path, kills: int) -> None:
    store, rng = LocalStore(tmp_path / "out.jsonl"), random.Random(kills)
    sizes = sorted(rng.randrange(2000, int(0.9 * len(whole))) for _ in range(kills))
    killed = 0
    for size in sizes:
        process = start(str(many), str(store.output), "0.005")
        wait_for(store.journal, size, process)
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    process = start(str(many), str(store.output), "0")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    print(f"killed {killed} of {kills} times")
    assert killed >= kills - 1 and store.output.read_bytes() == whole


@pytest.mark.slow
def test_sigterm_ends_it_in_time_and_in_order(many: Path, whole: bytes, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "out.jsonl")
    process = start(str(many), str(store.output))
    wait_for(store.journal, 3000, process)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - began < 5 and process.returncode == 75, errors
    assert "--resume goes on" in errors and store.journal.read_bytes().endswith(b"\n")
    process = start(str(many), str(store.output), "0")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and store.output.read_bytes() == whole, errors


@pytest.mark.slow
def test_sigterm_ends_it_in_time_while_a_step_takes_for_ever(many: Path, tmp_path: Path) -> None:
    """As it may be within a compiler; what was answered before is on the disk."""
    store = LocalStore(tmp_path / "out.jsonl")
    process = start(str(many), str(store.output), "1000", "1.0")
    assert process.stdout is not None and process.stdout.readline() == "step\n"
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - began < 3 and process.returncode == 75
    assert "1 s were not enough to end in order; --resume goes on" in errors


@pytest.mark.slow
def test_a_full_disk_stops_it_and_room_lets_it_go_on(
    many: Path, whole: bytes, small_disk: Callable[[str], Path]
) -> None:
    folder = small_disk("96k")
    store = LocalStore(folder / "out.jsonl")
    process = start(str(many), str(store.output), "0")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75 and "No space left on device" in errors, errors
    assert store.journal.stat().st_size > 10_000 and not store.output.exists()
    subprocess.run(["mount", "-o", "remount,size=8m", str(folder)], check=True)
    process = start(str(many), str(store.output), "0")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and store.output.read_bytes() == whole, errors
