"""A million trivial lines through a model that answers at once: python -m tests.serving.batch_jobs.instant IN OUT.

What is left is the job's own work. Prints one object: lines, seconds, lines_per_s, peak_mb (of the whole process).
"""

import json
import re
import sys
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from distaff.serving.batch_jobs.answers import Answers
from distaff.serving.batch_jobs.formats import InputFiles, InputSpec
from distaff.serving.batch_jobs.job import Job, JobSpec
from distaff.serving.batch_jobs.local_store import LocalStore
from distaff.serving.batch_jobs.prepare import Preparer
from distaff.serving.batch_jobs.scan import scan_input
from distaff.serving.garbage import settle_memory
from distaff.serving.generation import Outlet
from distaff.serving.http.spelling import Spelling
from distaff.serving.results import Choice, Completion, FinishReason, Timings, Usage
from distaff.serving.types import Request

BATCH = 256


class InstantEngine:
    """Answers all that it has in one step, with the token that stands first in the prompt."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Outlet, Request]] = deque()

    def submit_to(self, outbox: Outlet, request: Request) -> Callable[[], None]:
        self._waiting.append((outbox, request))
        return lambda: None

    def flush(self) -> None:
        """Nothing is held back."""

    def step(self) -> bool:
        worked = bool(self._waiting)
        while self._waiting:
            outbox, request = self._waiting.popleft()
            choice = Choice(0, "x", request.prompt[:1], FinishReason.LENGTH)
            usage, timings = Usage(len(request.prompt), 1), Timings()
            assert request.params.seed is not None
            outbox.end(Completion((choice,), request.prompt, usage, timings, request.params.seed), None, usage, timings)
        return worked


def write_input(path: Path, lines: int) -> None:
    with path.open("w") as file:
        for index in range(lines):
            body = '{"prompt":[1,2,3,4],"max_tokens":1}'
            file.write(f'{{"custom_id":"id-{index}","method":"POST","url":"/v1/completions","body":{body}}}\n')


def run(source: Path, output: Path) -> dict[str, float]:
    settle_memory()
    began = time.perf_counter()
    files = InputFiles(InputSpec((str(source),)))
    preparer = Preparer(None, context=16, now=datetime(2026, 1, 1))
    found = scan_input(files, check=preparer.check)
    engine = InstantEngine()
    with Job(files, found, LocalStore(output), JobSpec()) as job:
        outcome = job.run(
            engine, preparer, Answers("m", Spelling(None)), identity={}, advance=engine.step, capacity=lambda: 2 * BATCH
        )
    seconds = time.perf_counter() - began
    # Not ru_maxrss, which begins with what the process that started this one had.
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert peak is not None
    total = outcome.manifest["request_counts"]["completed"]
    return {
        "lines": total,
        "seconds": round(seconds, 2),
        "lines_per_s": round(total / seconds),
        "peak_mb": round(int(peak[1]) / 1024, 1),
    }


def main(source: str, output: str) -> None:
    print(json.dumps(run(Path(source), Path(output))))


if __name__ == "__main__":
    main(*sys.argv[1:])
