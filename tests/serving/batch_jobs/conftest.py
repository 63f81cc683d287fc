"""Jobs on the fake engine: real tokenizer, real journal, tokens computed by hand; killed wherever a test wants."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from distaff.serving.batch_jobs.answers import Answers
from distaff.serving.batch_jobs.formats import InputFiles, InputSpec
from distaff.serving.batch_jobs.job import Job, JobSpec, Outcome, Store
from distaff.serving.batch_jobs.prepare import Preparer
from distaff.serving.batch_jobs.scan import scan_input
from distaff.serving.batch_jobs.segments import Segments
from distaff.serving.engine import Engine
from distaff.serving.engine_config import EngineConfig
from distaff.serving.http.spelling import Spelling
from distaff.serving.plan import Bucket

from ...fakes import FakePrograms
from ..served import EOS, MAX_LEN, PAGE, VOCAB, small_tokenizer

BUCKETS = (Bucket(1, 1, "decode"), Bucket(8, 8, "decode"), Bucket(32, 8, "mixed"), Bucket(32, 8, "prompt"))
TOKENIZER = small_tokenizer()
IDENTITY = {"name": "fake", "dtype": "float32"}


class Killed(BaseException):
    """The process is gone: what it has not written yet is lost."""


def bury(job: Job) -> None:
    """From now on the journal of a job writes nothing more, whatever is cleaned up."""
    journal = job.journal
    if isinstance(journal, Segments):
        journal.sync = journal.tick = lambda: None
        journal._lease.end()
        journal._lease.release = lambda: None
    else:
        journal._write = lambda data: None


def fake_engine() -> Engine:
    device = FakePrograms(
        BUCKETS, num_slots=8, max_len=MAX_LEN, page_size=PAGE, num_pages=(128,), windows=(None,), vocab_size=VOCAB
    )
    config = EngineConfig(max_batch=8, max_step_tokens=32, deterministic=True)
    return Engine(device, config, vocab_size=VOCAB, eos_ids=frozenset([EOS]), tokenizer=TOKENIZER)


@dataclass
class Bench:
    """Runs jobs; `steps` counts the engine's over all runs."""

    spec: JobSpec = field(default_factory=JobSpec)
    steps: int = 0
    answered: list[int] = field(default_factory=list)

    def run(
        self,
        places: str | Path | Sequence[str],
        store: Store,
        *,
        resume: bool = False,
        overwrite: bool = False,
        stop_after: int | None = None,
        on_step: Callable[[], None] = lambda: None,
        stopping: Callable[[], bool] = lambda: False,
        window: int = 16,
        input: dict[str, Any] | None = None,
    ) -> Outcome:
        named = [str(places)] if isinstance(places, str | Path) else places
        files = InputFiles(InputSpec(tuple(named), **(input or {})))
        preparer = Preparer(TOKENIZER, context=MAX_LEN, now=datetime(2026, 1, 2))
        found = scan_input(files, self.spec.ids, preparer.check)
        begun = self.steps

        def advance() -> bool:
            self.steps += 1
            return engine.step()

        with fake_engine() as engine, Job(files, found, store, self.spec, resume=resume, overwrite=overwrite) as job:
            submit = engine.submit_to

            def submit_to(outbox: Any, request: Any) -> Any:
                self.answered.append(request.params.seed)
                return submit(outbox, request)

            def step() -> None:
                try:
                    on_step()
                except Killed:
                    bury(job)
                    raise

            engine.submit_to = submit_to
            return job.run(
                engine,
                preparer,
                Answers("fake", Spelling(TOKENIZER)),
                identity=IDENTITY,
                advance=advance,
                capacity=lambda: 16,
                stopping=lambda: stopping() or (stop_after is not None and self.steps - begun >= stop_after),
                on_step=step,
                window=window,
            )


@pytest.fixture
def bench() -> Bench:
    return Bench()


def request_line(index: int, **body: Any) -> dict[str, Any]:
    """A line of an OpenAI batch file, of a kind that changes with its number."""
    if index % 7 == 3:
        url, asked = "/v1/embeddings", {"input": [f"text {index}", "the same"]}
    elif index % 3 == 1:
        url, asked = (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": f"say {index}"}], "logprobs": True},
        )
        asked["max_tokens"] = 1 + index % 9
    else:
        url, asked = "/v1/completions", {"prompt": f"shared beginning of prompts {index}", "n": 1 + index % 2}
        asked["max_tokens"] = 2 + index % 11
    return {"custom_id": f"id-{index}", "method": "POST", "url": url, "body": {"model": "any", **asked, **body}}


def write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def sixty(tmp_path: Path) -> Path:
    """Sixty requests of every kind, two of them bad."""
    lines: list[dict[str, Any]] = [request_line(index) for index in range(60)]
    lines[18]["body"]["temperature"] = -3
    lines[40]["body"] = {"prompt": "x" * 500}
    lines[40]["url"] = "/v1/completions"
    return write_lines(tmp_path / "in.jsonl", lines)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A disk of the size that is asked for, where this process may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def make(size: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this process may not mount a tmpfs")
        return folder

    yield make
    subprocess.run(["umount", str(folder)], capture_output=True)
