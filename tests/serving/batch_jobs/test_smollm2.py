"""A job on SmolLM2, ended by signals, a full disk and lost machines: the output is that of an undisturbed run, byte for
byte."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest

from distaff.serving import LLM
from distaff.serving.batch_jobs.formats import InputFiles, InputSpec
from distaff.serving.batch_jobs.job import Job, JobSpec
from distaff.serving.batch_jobs.object_store import ObjectStore
from distaff.serving.batch_jobs.on_llm import LLMRun
from distaff.serving.batch_jobs.prepare import Preparer
from distaff.serving.batch_jobs.scan import scan_input

from .conftest import Killed, bury

ROOT = Path(__file__).resolve().parents[3]
MODEL = "smollm2-135m-instruct"
TOPICS = ("the sea", "old bridges", "how bread is made", "a lost key", "the colour of snow")
CONTEXT, MAX_BATCH = 256, 4


def request_line(index: int, length: int) -> dict[str, Any]:
    """Mixed: greedy and drawn, several answers, log-probabilities, shared beginnings, embeddings, some of them bad."""
    topic, url = TOPICS[index % len(TOPICS)], "/v1/completions"
    body: dict[str, Any] = {
        "prompt": f"Write about {topic}. {'Be brief. ' * (index % 4)}",
        "max_tokens": length * (2 + index % 11),
    }
    if index % 4 == 1:
        url = "/v1/chat/completions"
        body = {"messages": [{"role": "user", "content": f"Tell me about {topic}, number {index}."}]}
        body["max_tokens"] = 7 * length
        body |= {"temperature": 0.7, "top_p": 0.9, "logprobs": True, "top_logprobs": 2} if index % 8 == 1 else {}
    elif index % 10 == 2:
        url, body = "/v1/embeddings", {"input": [f"{topic} {index}", topic * (1 + index % 30)]}
    elif index % 3 == 0:
        body |= {"temperature": 0, "repetition_penalty": 1.2}
    elif index % 7 == 5:
        body |= {"n": 2, "stop": ["\n"]}
    if index % 50 == 49:
        body["top_p"] = 7
    return {"custom_id": f"r{index}", "method": "POST", "url": url, "body": body}


def start(source: Path, output: Path) -> "subprocess.Popen[str]":
    program = "from distaff.scripts.main import main; main()"
    options = ["--model", MODEL, "--context", str(CONTEXT), "--max-batch", str(MAX_BATCH)]
    options += ["--backend", os.environ.get("DISTAFF_TEST_BACKEND", "auto")]
    command = ["batch", str(source), str(output), *options, "--resume", "--tolerate-errors"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # one device
    return subprocess.Popen(
        [sys.executable, "-c", program, *command],
        cwd=ROOT,
        env={**environment, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def completed(source: Path, output: Path) -> list[bytes]:
    """Runs a job to its end; its rows, good and bad ones."""
    process = start(source, output)
    _, errors = process.communicate(timeout=3600)
    assert process.returncode == 0, errors
    return [output.read_bytes(), output.with_name(output.name + ".errors.jsonl").read_bytes()]


@dataclass(frozen=True)
class Whole:
    """An input, what an undisturbed run makes of it, and how long it takes to answer."""

    source: Path
    lines: int
    rows: list[bytes]
    seconds: float


@pytest.fixture(scope="module")
def whole(request: pytest.FixtureRequest, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder, (lines, length) = tmp_path_factory.mktemp("whole"), request.param
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps(request_line(index, length)) + "\n" for index in range(lines)))
    rows = completed(source, folder / "out.jsonl")
    told = [json.loads(row)["custom_id"] for row in rows[0].splitlines()]
    assert told == [f"r{index}" for index in range(lines) if index % 50 != 49]
    (run,) = json.loads((folder / "out.jsonl.manifest.json").read_text())["runs"]
    return Whole(source, lines, rows, run["busy_seconds"])


FEW, MANY = (60, 1), (500, 3)
"""How many lines and how long their answers are: on a quick machine many take a minute, since a journal is written once
a second, and what is killed more often than that gets no further."""


@pytest.mark.parametrize(
    ("whole", "kills", "terms"),
    [
        pytest.param(FEW, 1, 0, marks=(pytest.mark.slow, pytest.mark.any_backend)),
        pytest.param(MANY, 20, 5, marks=pytest.mark.soak),
    ],
    indirect=["whole"],
)
def test_killed_and_resumed_it_gives_the_same_bytes(whole: Whole, tmp_path: Path, kills: int, terms: int) -> None:
    """SIGKILL and SIGTERM at random moments while it answers, a tenth while it loads; all runs that are ended have half
    of the time that the job takes."""
    out, rng = tmp_path / "out.jsonl", random.Random(kills)
    journal, ended, loading = tmp_path / "out.jsonl.journal", list[int](), 0
    signals = [signal.SIGKILL] * kills + [signal.SIGTERM] * terms
    rng.shuffle(signals)
    longest = whole.seconds / max(2, len(signals))
    for number in signals:
        begun, loads = runs_of(journal), len(signals) > 1 and rng.random() < 0.1
        process = start(whole.source, out)
        while not loads and process.poll() is None and runs_of(journal) == begun:
            time.sleep(0.02)
        time.sleep(rng.random() * (4 if loads else longest))
        sent = time.monotonic()
        process.send_signal(number)
        process.communicate()
        loading += loads
        fair = {75} if number is signal.SIGTERM else {-number}
        assert process.returncode in (fair | {-number} if loads else fair)  # it may not have come as far as to hear it
        ended.append(process.returncode)
        assert time.monotonic() - sent < 5.5
    rows = completed(whole.source, out)
    runs = json.loads(out.with_name(out.name + ".manifest.json").read_text())["runs"]
    print(f"{whole.lines} lines in {len(runs)} runs, the last {runs[-1]['lines']} of them, ended with {ended}")
    assert len(runs) >= len(signals) - loading and rows == whole.rows
    assert kills == 1 or runs[-1]["lines"] < 0.9 * whole.lines  # what was answered before is kept


def runs_of(journal: Path) -> int:
    """Runs that have begun to answer, each counted whenever it tells of itself."""
    return journal.read_bytes().count(b',"run",') if journal.exists() else 0


@pytest.mark.soak
@pytest.mark.parametrize("whole", [MANY], indirect=True)
def test_a_full_disk_and_room_again(whole: Whole, small_disk: Callable[[str], Path]) -> None:
    folder = small_disk(f"{len(whole.rows[0]) // 2}")
    process = start(whole.source, folder / "out.jsonl")
    _, errors = process.communicate(timeout=3600)
    assert process.returncode == 75 and "No space left on device" in errors, errors
    assert (folder / "out.jsonl.journal").stat().st_size > len(whole.rows[0]) // 4
    subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
    assert completed(whole.source, folder / "out.jsonl") == whole.rows


@pytest.mark.soak
@pytest.mark.parametrize("whole", [MANY], indirect=True)
def test_machines_that_vanish_with_their_disks(whole: Whole) -> None:
    """On a store of objects: nothing is left of a machine but what it has put there."""
    rng, folder = random.Random(2), f"batch-{uuid.uuid4().hex}"
    place, killed = f"memory://{folder}/out.jsonl", 0
    files = InputFiles(InputSpec((str(whole.source),)))
    found = scan_input(files, check=Preparer(None).check)
    llm = LLM(MODEL, dtype="bfloat16", context=CONTEXT, max_batch=MAX_BATCH, deterministic=True)
    try:
        while True:
            left = rng.uniform(0.01, 0.07) * found.lines if killed < 20 else found.lines
            with Job(
                files, found, ObjectStore(place, lease_seconds=0.2, segment_seconds=1.0), JobSpec(), resume=True
            ) as job:
                until = job.journal.index.done + left

                def step(job: Job = job, until: float = until) -> None:
                    if job.journal.index.done > until:
                        bury(job)
                        raise Killed

                try:
                    LLMRun(llm, job, name=MODEL, dtype="bfloat16").run(on_step=step)
                    break
                except Killed:
                    killed += 1
    finally:
        llm.close()
    fs = fsspec.filesystem("memory")
    rows = [fs.cat_file(f"/{folder}/out.jsonl{end}") for end in ("", ".errors.jsonl")]
    fs.rm(f"/{folder}", recursive=True)
    print(f"killed {killed} times")
    assert killed == 20 and rows == whole.rows
