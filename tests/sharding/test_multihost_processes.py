"""Local processes as hosts: the tokens of one process, and an end with a message when one is killed or stands still."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distaff.sharding.multihost import free_port

WORKER = Path(__file__).parent / "host_process.py"
TIMEOUT = 16.0
"""As in host_process.py."""


@contextmanager
def started(count: int, devices: int, layout: str, mode: str = "on", *more: str) -> Iterator[list[Any]]:
    port = free_port()
    arguments = [str(devices), layout, mode, *more]
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(i), str(count), str(port), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def told_by(process: Any) -> Any:
    """The next answers, or score and vector; libraries write to stdout too."""
    for line in process.stdout:
        if line.startswith("[["):
            return json.loads(line)
    raise AssertionError(process.stderr.read())


@pytest.fixture(scope="module")
def alone() -> tuple[list[list[int]], list[list[float]]]:
    """Tokens of six requests; of a text its log-probabilities and its vector."""
    with started(1, 1, "data=1", "once") as (process,):
        tokens, texts = told_by(process), told_by(process)
    assert len({tuple(each) for each in tokens}) > 3 and all(len(each) == 8 for each in tokens)
    return tokens, texts


@pytest.mark.slow
def test_two_hosts_serve_as_one_and_end_together(alone: Any) -> None:
    """Each has half of the width of what the vector is made of."""
    with started(2, 1, "tensor-2d:tensor2=2", "once") as processes:
        assert told_by(processes[0]) == alone[0]
        for got, expected in zip(told_by(processes[0]), alone[1], strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-4)
        assert [process.wait(TIMEOUT) for process in processes] == [0, 0]


@pytest.mark.slow
def test_hosts_turn_a_stream_together_and_tell_vectors_as_if_they_had_not(alone: Any) -> None:
    """Each turns the part of every leaf that it has; rounded parts of tokens have scales of their own."""
    with started(2, 1, "tensor-2d:tensor2=2", "once", "int8") as processes:
        told_by(processes[0])
        (scores, vector), (exact, plain) = map(np.asarray, told_by(processes[0])), map(np.asarray, alone[1])
        assert 0 < np.abs(scores - exact).max() < 0.5
        assert vector @ plain > 0.99 * np.linalg.norm(vector) * np.linalg.norm(plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "layout", "victim", "how", "why"),
    [
        (4, "stage=2,tensor=2", 2, signal.SIGKILL, ""),
        (2, "tensor=2", 0, signal.SIGKILL, ""),
        # Replicas, of which each host has one.
        (2, "data=2", 1, signal.SIGSTOP, "nothing was heard from it for 8."),
    ],
    ids=["another", "host 0", "stopped"],
)
def test_a_lost_host_ends_the_others_with_its_name(
    alone: Any, count: int, layout: str, victim: int, how: signal.Signals, why: str
) -> None:
    with started(count, 1, layout) as processes:
        assert told_by(processes[0]) == alone[0]
        processes[victim].send_signal(how)
        killed = time.monotonic()
        others = [process for process in processes if process is not processes[victim]]
        codes, told = [], []
        for process in others:
            told.append(process.communicate(timeout=TIMEOUT)[1])
            codes.append(process.returncode)
        assert time.monotonic() - killed < TIMEOUT
        assert codes == [1] * len(others), told
        name = f"host {victim} of {count} (127.0.0.1"
        assert all(name in text and "was lost" in text and why in text for text in told), told
