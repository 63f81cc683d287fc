"""A layout over processes through the command: the tokens of one process, and a message where one is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distaff.sharding.multihost import free_port

PROGRAM = "from distaff.scripts.main import main; main()"
ASKED = ["--prompt", "The capital of France is", "--temperature", "0", "--context", "256"]


def started(model: Path, backend: str, *options: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # one device
    environment |= {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, "generate", "--model", str(model), "--backend", backend]
    return subprocess.Popen(
        [*command, *ASKED, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def joined(model: Path, layout: str, count: int, *options: str) -> list[subprocess.Popen[str]]:
    where = ["--layout", layout, "--coordinator", f"127.0.0.1:{free_port()}", "--num-hosts", str(count)]
    return [started(model, "torch:cpu", *where, "--host", str(host), *options) for host in range(count)]


def tokens(process: subprocess.Popen[str]) -> list[int]:
    out, told = process.communicate()
    assert process.returncode == 0, told
    return json.loads(out.splitlines()[-1])["token_ids"] if out else []


@pytest.mark.parametrize(
    ("layout", "count"), [("tensor=3", 3), pytest.param("data=2,stage=2", 4, marks=pytest.mark.slow)]
)
def test_tokens_are_those_of_one_process(layout: str, count: int, smollm2: Path) -> None:
    length = ("--max-tokens", "12", "--json")
    want = tokens(started(smollm2, "cpu", *length))
    first, *others = joined(smollm2, layout, count, *length)
    assert tokens(first) == want and len(want) == 12
    assert [tokens(other) for other in others] == [[]] * (count - 1)


def test_a_process_that_dies_is_told_and_nobody_waits(smollm2: Path) -> None:
    first, second = joined(smollm2, "stage=2", 2, "--max-tokens", "240", "--ignore-eos")
    assert first.stdout is not None
    first.stdout.read(1)  # it has begun to answer
    second.kill()
    second.communicate()
    _, told = first.communicate(timeout=60)
    assert first.returncode != 0 and "host 1 of 2 (127.0.0.1) was lost" in told, told


def test_one_process_alone_is_told_to_start_the_others(smollm2: Path) -> None:
    process = started(smollm2, "torch:cpu", "--layout", "tensor=3")
    _, told = process.communicate()
    assert process.returncode == 2, told
    assert "layout tensor=3: backend torch:cpu has a process for each device; start as many as" in told
