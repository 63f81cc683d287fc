"""`distaff generate` with SmolLM2: the tokens of every torch device are those of the CPU backend."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = "from distaff.scripts.main import main; main()"
PROMPT = "The capital of France is"


def generated(model: Path, backend: str, count: int) -> list[int]:
    asked = ["--model", str(model), "--prompt", PROMPT, "--temperature", "0", "--max-tokens", str(count), "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # one device
    environment["PJRT_DEVICE"] = "CPU"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "generate", "--backend", backend, "--context", "128", *asked],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["token_ids"]


@pytest.mark.parametrize("backend", ["torch:cpu", "torch:xla"])
def test_tokens_are_those_of_the_cpu_backend(smollm2: Path, backend: str) -> None:
    count = 16
    want = generated(smollm2, "cpu", count)
    assert len(want) == count and generated(smollm2, backend, count) == want
